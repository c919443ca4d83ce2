"""Evidence: what a run found, as DICOM objects and a page. Pure: data sets in, data sets out; no clock, no file, no socket."""
