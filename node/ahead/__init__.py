"""Decoding before anybody waits for it: while a study still arrives, what a job will want of it is made ready in the worker's memory.

A process of its own (`child`) touches the files, since codecs crash, hang and swallow memory over what hospitals send; the worker
(`work`) asks it (`helper`) for one thing at a time while it has no job and the machine has room (`load`), and keeps the answers
(`node.inference.prepared`). What goes wrong here is forgotten: the job reads the file itself, and judges it.
"""
