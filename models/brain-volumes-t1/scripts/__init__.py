"""What MONAI's own transforms cannot say of this bundle."""
