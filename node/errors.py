"""Every way radnode can decline or fail, and what each means to someone.

NodeError
├─ ConfigError                              exit 78
├─ UsageError                               exit 2     the user asked for something that is not there
├─ IntakeError                              dimse_status
│   ├─ OutOfResources           retryable   0xA700     disk below the watermark, journal locked
│   ├─ DataSetMismatch                      0xA900     data set disagrees with the C-STORE request
│   └─ CannotUnderstand                     0xC000     undecodable, or without the UIDs that file it
├─ InputError                                          a study we must decline; the reason goes into the SR
│   ├─ OutsideIntendedUse                              the model card says no
│   ├─ UnsupportedTransferSyntax, BrokenPixelData
│   └─ NotAVolume
│       ├─ TooFewSlices, MissingSlices, IrregularSpacing, DuplicatePositions
│       ├─ MixedOrientation, MixedGrid, MixedFrameOfReference
│       └─ MissingGeometry
├─ ModelError                                          the model cannot be loaded or trusted
│   ├─ CardInvalid, CardIsDraft, BundleInvalid
│   ├─ BundleRefused                                   an archive or a pickle that must not be opened, trust that was not given
│   ├─ BundleChanged                                   files of an installed bundle are not those that were trusted
│   ├─ WeightsMissing, WeightsMismatch, WeightsUnavailable
├─ EngineError                  retryable
│   ├─ DeviceOutOfMemory        retryable
│   └─ NonFiniteOutput
├─ EvidenceError                                       our bug: an object we must not send
│   └─ EvidenceInvalid                                 the gate found something wrong with it: quarantined
└─ DeliveryError
    ├─ PeerUnreachable          retryable              network, abort, timeout
    ├─ AssociationRejected      retryable if transient
    ├─ StoreOutOfResources      retryable   0xA7xx
    └─ StoreRefused                         0xA9xx, 0xCxxx, 0x0122, 0x0124

`retryable`, `dimse_status` and `exit_code` are class attributes: handlers and the CLI read them, nobody asks `isinstance`.
"""

from typing import ClassVar

from node.codes import ExitCode, StoreStatus


class NodeError(Exception):
    """radnode could not do this."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    @property
    def code(self) -> str:
        """Stable name of the kind of fault, e.g. `MissingSlices`: for journals, logs and tests."""
        return type(self).__name__


class ConfigError(NodeError):
    """The configuration file has faults: all of them, one a line."""

    exit_code = ExitCode.CONFIG


class UsageError(NodeError):
    """The command names something that is not there."""

    exit_code = ExitCode.USAGE


# ── intake ──────────────────────────────────────────────────────────────────


class IntakeError(NodeError):
    """An instance that we do not take."""

    dimse_status: ClassVar[StoreStatus] = StoreStatus.CANNOT_UNDERSTAND


class OutOfResources(IntakeError):
    """Nothing is wrong with the instance; the node cannot keep it now."""

    retryable = True
    dimse_status = StoreStatus.OUT_OF_RESOURCES


class DataSetMismatch(IntakeError):
    """The data set says another SOP class or instance than the request."""

    dimse_status = StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS


class CannotUnderstand(IntakeError):
    """The bytes are no DICOM data set, or lack the UIDs under which to file them."""


# ── input ───────────────────────────────────────────────────────────────────


class InputError(NodeError):
    """A series that must not be analysed; the reason is told to the reader."""


class OutsideIntendedUse(InputError):
    """The model card excludes this series."""


class UnsupportedTransferSyntax(InputError):
    """No decoder for this transfer syntax is installed."""


class BrokenPixelData(InputError):
    """The pixel data is absent, truncated or cannot be decoded."""


class NotAVolume(InputError):
    """The images of the series do not form one volume."""


class TooFewSlices(NotAVolume):
    """A volume needs at least two slices."""


class MissingSlices(NotAVolume):
    """Interior slices are absent and the gap is too wide to bridge."""


class IrregularSpacing(NotAVolume):
    """The distances between the slices follow no pattern."""


class DuplicatePositions(NotAVolume):
    """Several images lie at one place (several phases, echoes or b-values)."""


class MixedOrientation(NotAVolume):
    """The slices are not parallel."""


class MixedGrid(NotAVolume):
    """Rows, columns or pixel spacing differ between slices."""


class MixedFrameOfReference(NotAVolume):
    """The slices belong to several frames of reference."""


class MissingGeometry(NotAVolume):
    """Position, orientation, spacing or frame of reference is absent or malformed."""


# ── models and engines ──────────────────────────────────────────────────────


class ModelError(NodeError):
    """A model cannot be loaded or trusted."""


class CardInvalid(ModelError):
    """card.toml has faults."""


class CardIsDraft(ModelError):
    """Nobody has confirmed the labels and codes of the card: the model must not serve a route."""


class BundleInvalid(ModelError):
    """The bundle lacks a part that radnode needs."""


class BundleRefused(ModelError):
    """The bundle holds what must not be opened, or nobody has said that its code is trusted."""


class BundleChanged(ModelError):
    """Files of an installed bundle are not those that were trusted when it was installed."""


class WeightsMissing(ModelError):
    """The weights are not installed."""


class WeightsMismatch(ModelError):
    """The weights are not the file that the card names (sha256 differs)."""


class WeightsUnavailable(ModelError):
    """The weights could not be fetched."""


class EngineError(NodeError):
    """The engine failed to run the network."""

    retryable = True


class DeviceOutOfMemory(EngineError):
    """The device has too little memory for this volume."""


class NonFiniteOutput(EngineError):
    """The network answered NaN or infinity."""

    retryable = False


class EvidenceError(NodeError):
    """An evidence object of ours is invalid: never sent."""


class EvidenceInvalid(EvidenceError):
    """The conformance gate found errors in an object of ours: it stays in quarantine."""


# ── delivery ────────────────────────────────────────────────────────────────


class DeliveryError(NodeError):
    """A result did not reach its destination."""

    exit_code = ExitCode.PEER_UNAVAILABLE


class PeerUnreachable(DeliveryError):
    """No connection, or it broke."""

    retryable = True


class AssociationRejectedTransient(DeliveryError):
    """The peer rejects associations at the moment."""

    retryable = True


class AssociationRejected(DeliveryError):
    """The peer does not want us (AE title, SOP classes)."""


class StoreOutOfResources(DeliveryError):
    """The peer answered 0xA7xx."""

    retryable = True


class StoreRefused(DeliveryError):
    """The peer refused the object for good (0xA9xx, 0xCxxx, 0x0122, 0x0124)."""
