"""From the archive: the listener, and the spool where received bytes lie until a job reads them."""
