"""Peers of the configuration, as whoever calls them needs them."""

from node.config import Config
from node.delivery.upper_layer import Peer
from node.errors import ConfigError
from node.network.tls import ClientTls


def configured_peer(config: Config, name: str, *, calling_ae_title: str = "") -> Peer:
    """Answers how to call a peer of the configuration: where it listens, by which names, with TLS or without."""
    section = config.peers[name]
    tls = None
    if section.tls:
        if config.tls is None:
            raise ConfigError(f"peers.{name}.tls is set, and there is no section [tls] → add it")
        tls = ClientTls(config.tls, verify_host=section.tls_verify_host)
    calling = calling_ae_title or config.node.ae_title
    return Peer(section.host, section.port, section.ae_title, calling, tls, async_operations=section.async_operations)
