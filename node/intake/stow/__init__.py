"""The Store transaction of DICOMweb as origin server (STOW-RS, PS3.18 10.5): another door to the same intake."""
