"""radnode: a DICOM AI node. The package is `node`; the distribution, the command and the logger are `radnode`."""

__version__ = "0.1.0"
