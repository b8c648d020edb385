"""The engine's actors over a Ray of this process: who is asked, who died, and what then is lost.

tests/simulations/engines/test_ray.py (slow) runs the real one over two nodes.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from simulations.engines.errors import EngineError

pytest.importorskip("ray")

from simulations.engines import ray as engine
from simulations.engines.ray import RayActorError, RayActors, connect


class Cluster:
    """As much of Ray as the engine knows; an actor in `dead` dies of what it is asked."""

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.asked: list[tuple[int, str]] = []
        self.killed: list[Any] = []
        self.open = False
        self.begun: dict[str, Any] = {}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_: Any) -> Any:
        cluster, numbers = self, iter(range(100))

        class Actor:
            def __init__(self) -> None:
                self.number = next(numbers)
                self.answer = SimpleNamespace(remote=self._answer)

            def _answer(self, site: str, message: Any) -> tuple[int, str]:
                cluster.asked.append((self.number, site))
                return self.number, f"reply of {site} ({len(cluster.asked)})"

        return lambda _: SimpleNamespace(remote=lambda place: Actor())

    def wait(self, busy: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return busy[:1], busy[1:]

    def get(self, ready: tuple[int, str]) -> str:
        if ready[0] in self.dead:
            raise RayActorError
        return ready[1]

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)

    def is_initialized(self) -> bool:
        return self.open

    def init(self, **options: Any) -> None:
        self.open, self.begun = True, options

    def shutdown(self) -> None:
        self.open = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(engine, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


def message(group: str = "1") -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(group_id=group))


def replies(actors: RayActors) -> dict[str, Any]:
    found = {}
    while (one := actors.collect()) is not None:
        found[one[0]] = one[1]
    return found


def test_every_site_is_answered_by_as_many_actors_as_there_are(cluster: Cluster) -> None:
    place: Any = None
    actors = RayActors(place, 2, connected=False)
    for number in range(5):
        actors.submit(str(number), f"site-{number}", message())
    assert [actor for actor, _ in cluster.asked] == [0, 1]  # the others wait
    assert set(replies(actors)) == set("01234")
    assert {actor for actor, _ in cluster.asked} == {0, 1}
    assert sorted(site for _, site in cluster.asked) == [f"site-{n}" for n in range(5)]
    actors.close()
    assert sorted(cluster.killed) == [0, 1]


def test_what_an_actor_held_when_it_died_is_asked_of_another(cluster: Cluster) -> None:
    place: Any = None
    actors = RayActors(place, 2, connected=False)
    cluster.dead = {0}
    for number in range(3):
        actors.submit(str(number), f"site-{number}", message())
    assert set(replies(actors)) == set("012")
    assert [actor for actor, site in cluster.asked if site == "site-0"] == [0, 1]
    actors.close()
    assert cluster.killed == [1]


def test_a_cluster_without_a_live_actor_is_an_error_and_no_silence(cluster: Cluster) -> None:
    place: Any = None
    actors = RayActors(place, 2, connected=True)
    cluster.open, cluster.dead = True, {0, 1}
    actors.submit("0", "site-0", message())
    with pytest.raises(EngineError, match="every worker of the Ray cluster has died"):
        replies(actors)
    actors.close()
    assert not cluster.open


def test_ray_is_started_on_loopback_or_the_cluster_that_is_joined_is_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect(3)
    assert (cluster.begun["num_cpus"], cluster.begun["_node_ip_address"]) == (3, "127.0.0.1")
    assert not connect(3)  # somebody's own Ray stays theirs
    cluster.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert connect(3)
    assert cluster.begun["address"] == "auto"
