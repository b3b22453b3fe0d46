"""Three RabbitMQ nodes on loopback that form one cluster, for tests that kill them one after the other.

Responsible for: starting the nodes, joining them, and telling when a node has caught up with the others. Each is a
`simulator.rabbitmq_node.RabbitNode`, which may be broken like any other. It must not declare anything on them.

Nodes in containers are not joined: that would need a network of their own. Plain synchronous code.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from simulator.rabbitmq_local import Kin, LocalHost
from simulator.rabbitmq_node import RabbitNode
from simulator.rabbitmq_server import NodeError, StartScript, find_server

SIZE = 3

_POLL_S = 0.5
_READY_TIMEOUT_S = 60.0
_CTL_TIMEOUT_S = 60.0


class RabbitCluster:
    """A cluster: `with RabbitCluster() as cluster:`, or `start` and `stop`.

    Attributes:
        nodes: its nodes; the others joined the first.

    Raises:
        NodeError: there is no server on this machine out of which several nodes can be started.
    """

    def __init__(self) -> None:
        server = find_server()
        if not isinstance(server, StartScript):
            raise NodeError("a cluster needs a RabbitMQ server on this machine")
        kin = Kin()
        self._hosts = [LocalHost(server.path, {}, kin) for _ in range(SIZE)]
        self.nodes = [RabbitNode(host) for host in self._hosts]

    @property
    def amqp_url(self) -> str:
        """The URL of the first node."""
        return self.nodes[0].amqp_url

    @property
    def amqp_urls(self) -> str:
        """The URLs of all nodes, separated by commas."""
        return ",".join(node.amqp_url for node in self.nodes)

    def ctl(self, *arguments: str, timeout_s: float = _CTL_TIMEOUT_S) -> str:
        """Run `rabbitmqctl` against the first node and return what it printed; NodeError when it fails."""
        return self.nodes[0].ctl(*arguments, timeout_s=timeout_s)

    def start(self) -> None:
        """Start the nodes and join them; return when each of them sees all."""
        try:
            # the first one brings the port mapper up; the others must find it there
            self.nodes[0].start()
            with ThreadPoolExecutor() as pool:
                list(pool.map(RabbitNode.start, self.nodes[1:]))
            for node in self.nodes[1:]:
                for command in (("stop_app",), ("join_cluster", self._hosts[0].name), ("start_app",)):
                    node.ctl(*command, timeout_s=_CTL_TIMEOUT_S)
            self.await_all()
        except BaseException:
            self.stop()
            raise

    def await_all(self) -> None:
        """Return when every node runs and sees every other one."""
        names = {host.name for host in self._hosts}
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not all(self._sees(node, names) for node in self.nodes):
            if time.monotonic() > deadline:
                raise NodeError(f"the nodes do not see one another after {_READY_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every node and delete all they had. Idempotent."""
        # the first one's port mapper serves the others
        for node in reversed(self.nodes):
            node.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _sees(self, node: RabbitNode, names: set[str]) -> bool:
        try:
            status = json.loads(node.ctl("cluster_status", "--formatter", "json", timeout_s=_CTL_TIMEOUT_S))
        except NodeError:
            return False
        return names <= set(status["running_nodes"])
