"""Models of others become models of this node: MONAI bundles and trained folders of nnU-Net, checked, converted, with a draft of a card."""
