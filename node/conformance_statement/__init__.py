"""What radnode does towards other systems, told by its own code: the DICOM conformance statement and the IHE integration statement.

Nothing in it is looked up by hand that the code can be asked: contexts are those that the listener accepts, answers are those that
the judging functions give, attributes are those of results that are encoded on the spot. `docs/reference/` keeps what comes out,
and a test compares.
"""
