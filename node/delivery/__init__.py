"""To the archive: results leave as C-STORE, are tried again through outages, and end with an answer of the archive."""
