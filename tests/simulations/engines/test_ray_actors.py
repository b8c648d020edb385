"""The engine's actors over a Ray of this process: who is asked, who died, and what then is lost.

tests/simulations/engines/test_ray.py (slow) runs the real one over two nodes.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simulations.engines.errors import EngineError

pytest.importorskip("ray")

from client.scoring import cluster as joining
from simulations.engines import ray as engine
from simulations.engines.ray import Answer, ObjectLostError, RayActorError, RayActors, connect


class Cluster:
    """As much of Ray as the engine knows; an actor in `dead` dies of what it is asked.

    Of an actor in `lossy` the first reply is lost on its way.
    """

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.lossy: set[int] = set()
        self.left: list[int] = []
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
                self.leave = SimpleNamespace(remote=lambda: cluster.left.append(self.number))

            def _answer(self, site: str, message: Any, added: Any) -> tuple[int, str]:
                cluster.asked.append((self.number, site))
                return self.number, f"reply of {site} ({len(cluster.asked)})"

        return lambda _: SimpleNamespace(remote=lambda place: Actor())

    def wait(self, busy: list[Any], num_returns: int, **_: Any) -> tuple[list[Any], list[Any]]:
        return busy[:1], busy[1:]

    def get(self, ready: tuple[int, str]) -> Answer:
        number, reply = ready
        if number in self.dead:
            raise RayActorError
        if number in self.lossy:
            self.lossy.remove(number)
            raise ObjectLostError("a", None, "b")
        answer: Any = reply
        return Answer(answer, {}, "own code failed" if "site-9" in reply else "")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

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
    monkeypatch.setattr(joining, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


def message(group: str = "1") -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(group_id=group))


@pytest.fixture
def place(tmp_path: Path) -> Any:
    return SimpleNamespace(folder=tmp_path)


def replies(actors: RayActors) -> dict[str, Any]:
    found = {}
    while (one := actors.collect()) is not None:
        found[one[0]] = one[1]
    return found


def test_every_site_is_answered_by_as_many_actors_as_there_are(
    cluster: Cluster, place: Any
) -> None:
    actors = RayActors(place, 2, connected=False)
    for number in range(5):
        actors.submit(str(number), f"site-{number}", message())
    assert [actor for actor, _ in cluster.asked] == [0, 1]  # the others wait
    assert set(replies(actors)) == set("01234")
    assert {actor for actor, _ in cluster.asked} == {0, 1}
    assert sorted(site for _, site in cluster.asked) == [f"site-{n}" for n in range(5)]
    actors.close()
    assert sorted(cluster.left) == sorted(cluster.killed) == [0, 1]


def test_what_an_actor_held_when_it_died_is_asked_of_another(cluster: Cluster, place: Any) -> None:
    actors = RayActors(place, 2, connected=False)
    cluster.dead = {0}
    for number in range(3):
        actors.submit(str(number), f"site-{number}", message())
    assert set(replies(actors)) == set("012")
    assert [actor for actor, site in cluster.asked if site == "site-0"] == [0, 1]
    actors.close()
    assert cluster.killed == [1]


def test_a_cluster_without_a_live_actor_is_an_error_and_no_silence(
    cluster: Cluster, place: Any
) -> None:
    actors = RayActors(place, 2, connected=True)
    cluster.open, cluster.dead = True, {0, 1}
    actors.submit("0", "site-0", message())
    with pytest.raises(EngineError, match="every worker of the Ray cluster has died"):
        replies(actors)
    actors.close()
    assert not cluster.open


def test_a_reply_that_was_lost_is_asked_for_again_and_its_actor_lives(
    cluster: Cluster, place: Any
) -> None:
    actors = RayActors(place, 1, connected=False)
    cluster.lossy = {0}
    actors.submit("0", "site-0", message())
    assert set(replies(actors)) == {"0"}
    assert cluster.asked == [(0, "site-0"), (0, "site-0")]


def test_what_failed_in_own_code_is_written_where_the_run_looks(
    cluster: Cluster, place: Any
) -> None:
    actors = RayActors(place, 1, connected=False)
    actors.submit("0", "site-9", message())
    replies(actors)
    assert (place.folder / engine.FAULT).read_text() == "own code failed"


def test_ray_is_started_on_loopback_or_the_cluster_that_is_joined_is_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect(3)
    assert (cluster.begun["num_cpus"], cluster.begun["_node_ip_address"]) == (3, "127.0.0.1")
    assert not connect(3)  # somebody's own Ray stays theirs
    with pytest.raises(ValueError, match=r"simulation\.workers must be at most 4"):
        connect(5)
    cluster.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert connect(3)
    assert cluster.begun["address"] == "auto"
    cluster.shutdown()
    with pytest.raises(ValueError, match=r"simulation\.workers must be at most 4"):
        connect(5)
    assert not cluster.open
