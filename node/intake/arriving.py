"""Data sets on their way in: each goes straight from the network into a file of the spool, so that memory stays bounded."""

import socket

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu_primitives import P_DATA

from node.intake.spool import FileIdentity, IncomingFile, Spool
from node.network import acknowledge_at_once


class ArrivingDataSet:
    """An incoming file in the shape in which pynetdicom writes chunked data sets."""

    def __init__(self, incoming: IncomingFile) -> None:
        self.incoming = incoming
        self.name = str(incoming.path)
        self.write = incoming.write

    @property
    def file(self) -> "ArrivingDataSet":
        """Pynetdicom flushes this after every fragment: we flush once, at the end."""
        return self

    def flush(self) -> None:
        """Does nothing yet."""

    def close(self) -> None:
        """Does nothing: `accept` has closed the file."""


class SpoolingDimse(DIMSEServiceProvider):
    """A DIMSE provider that writes each data set into a file while it arrives, so that memory stays bounded.

    It uses pynetdicom's own way for chunked data sets, with files of the spool in the place of files in /tmp.
    """

    def __init__(self, association: Association, link: socket.socket, spool: Spool) -> None:
        super().__init__(association)
        self._link = link
        self._spool = spool
        self._files: list[IncomingFile] = []
        self.instances = 0
        self.size_bytes = 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Takes fragments one by one: a data set may begin behind its command in one PDU."""
        for fragment in primitive.presentation_data_value_list:
            one = P_DATA()
            one.presentation_data_value_list.append(fragment)
            super().receive_primitive(one)
            if isinstance(self.message, C_STORE_RQ) and self.message._data_set_file is None:  # noqa: SLF001
                self._begin_data_set(self.message)
        acknowledge_at_once(self._link)

    def _begin_data_set(self, message: C_STORE_RQ) -> None:
        context = self.assoc._accepted_cx.get(message.context_id or 0)  # noqa: SLF001
        command = message.command_set
        incoming = self._spool.open_incoming(
            FileIdentity(
                sop_class_uid=str(command.get("AffectedSOPClassUID", "")),
                sop_instance_uid=str(command.get("AffectedSOPInstanceUID", "")),
                transfer_syntax_uid=str(context.transfer_syntax[0]) if context else "",
                calling_ae_title=calling_ae_title(self.assoc),
            )
        )
        self._count()
        self._files.append(incoming)
        message._data_set_file = ArrivingDataSet(incoming)  # type: ignore[assignment]  # noqa: SLF001
        message._data_set_path = incoming.path  # noqa: SLF001

    def _count(self) -> None:
        ended = [incoming for incoming in self._files if not incoming.is_open]
        self.instances += len(ended)
        self.size_bytes += sum(incoming.size_bytes for incoming in ended)
        self._files = [incoming for incoming in self._files if incoming.is_open]

    def end(self) -> None:
        """Forgets what had not arrived whole; for when the association is over."""
        self._count()
        for incoming in self._files:
            incoming.discard()


def calling_ae_title(association: Association) -> str:
    """Answers what the requestor of an association calls itself."""
    request = association.requestor.primitive
    return str(request.calling_ae_title).strip() if request is not None else ""
