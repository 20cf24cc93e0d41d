"""One launcher per server under comparison, behind `base.Peer`; `setup` installs them."""

from __future__ import annotations

from benchmarks.versus.base import Peer
from benchmarks.versus.epoll import EpollPeer
from benchmarks.versus.litserve import LitservePeer
from benchmarks.versus.lrai import LraiPeer
from benchmarks.versus.mlserver import MlserverPeer
from benchmarks.versus.triton import TritonPeer, TunedTritonPeer

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (LraiPeer, EpollPeer, TritonPeer, TunedTritonPeer, MlserverPeer, LitservePeer)
}
"""Every peer by name."""
