"""The queues under random plays: what holds in all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.interface import Costs
from service.scheduling.jobs import Job, JobClass
from service.scheduling.launches import Launch
from tests.test_service.test_scheduling.test_queues import Line

SAFETY = JobClass.SAFETY


class Play:
    """Queues under a random play, beside the plainest account of what waits: a list.

    A launch takes as many slices as it has parts; whoever plays says when the next one is taken.
    """

    def __init__(self, most_rows: int, max_passes: int) -> None:
        self.line = Line(max_passes=max_passes)
        by_one = Costs((2 * most_rows,), (0.5,))
        self.costs = Costs((most_rows,), (1.0,), fewer=(by_one,))
        self.waiting: list[Job] = []
        self.open: list[Launch] = []
        self.begun: list[Job] = []
        self.slices: list[tuple[JobClass, set[JobClass]]] = []
        """Class of each slice, and what waited then."""

    def add(self, job_class: JobClass, rows: int, horizon: int, members: int | None = None) -> None:
        self.waiting.append(self.line.add(job_class, rows, horizon, members))

    def leave(self, index: int) -> None:
        alive = [job for job in self.waiting + self.begun if not job.is_done]
        if alive:
            self.line.end(alive[index % len(alive)])
            self.waiting = [job for job in self.waiting if not job.is_done]

    def slice(self) -> None:
        self.open = [launch for launch in self.open if not launch.is_abandoned]
        wants = {job.job_class for job in self.waiting} | {x.job_class for x in self.open}
        launch = self.line.queues.next_launch(self.costs)
        assert (launch is None) == (not wants)
        if launch is None:
            return
        self.slices.append((launch.job_class, wants))
        if launch not in self.open:
            assert launch.job_class not in {other.job_class for other in self.open}
            self._check_begun(launch)
            self.open.append(launch)
            self.waiting = [job for job in self.waiting if job not in launch.jobs]
            self.begun += launch.jobs
        launch.taken += launch.horizon
        if launch.taken >= launch.horizon * -(-launch.rows // launch.part_rows):
            self.line.queues.close(launch)
            self.open.remove(launch)
            self.begun = [job for job in self.begun if job not in launch.jobs]

    def _check_begun(self, launch: Launch) -> None:
        """It is the longest run of the oldest jobs of one kind that the engine takes at once."""
        of_class = [job for job in self.waiting if job.job_class is launch.job_class]
        alike = [job for job in of_class if job.group == of_class[0].group]
        most_rows = self.costs.of(launch.members).launch_rows[0]
        count = len(launch.jobs)
        assert launch.jobs == alike[:count]
        assert launch.rows == sum(job.rows for job in launch.jobs)
        assert (launch.horizon, launch.members) == alike[0].group
        assert count == 1 or launch.rows <= most_rows
        assert count == len(alike) or launch.rows + alike[count].rows > most_rows
        parts = -(-launch.rows // most_rows)
        assert (launch.part_rows - 1) * parts < launch.rows <= launch.part_rows * parts

    def check_account(self) -> None:
        seconds = 0.0
        for job_class in JobClass:
            before = seconds
            mine = [job for job in self.waiting if job.job_class is job_class]
            for group in {job.group for job in mine}:
                rows, costs = sum(x.rows for x in mine if x.group == group), self.costs.of(group[1])
                seconds += group[0] * -(-rows // costs.launch_rows[0]) * costs.step_s[0]
            of_class = [launch for launch in self.open if launch.job_class is job_class]
            seconds += sum(x.steps_left * self.costs.of(x.members).step_s[0] for x in of_class)
            queues = self.line.queues
            assert queues.depth(job_class) == len(mine)
            assert queues.rows(job_class) == sum(job.rows for job in mine)
            assert queues.seconds_before(job_class, self.costs) == seconds
            assert queues.seconds(job_class, self.costs) == seconds - before


ADDS = st.tuples(
    st.sampled_from(JobClass),
    st.integers(1, 9),
    st.sampled_from([1, 4]),
    st.sampled_from([None, 1]),
)
MOVES = st.lists(st.one_of(ADDS, st.integers(0, 9), st.just("slice"), st.just("slice")))


@given(moves=MOVES, most_rows=st.integers(1, 8), max_passes=st.integers(1, 4))
def test_whatever_happens_jobs_are_launched_whole_in_order_and_accounted_for(
    moves: list[tuple[JobClass, int, int, int | None] | int | str], most_rows: int, max_passes: int
) -> None:
    play = Play(most_rows, max_passes)
    for move in moves:
        if isinstance(move, tuple):
            play.add(*move)
        elif isinstance(move, int):
            play.leave(move)
        else:
            play.slice()
        play.check_account()
    while play.waiting or play.open:
        play.slice()

    play.check_account()
    assert play.line.queues.next_launch(play.costs) is None


@given(
    arrivals=st.lists(st.sets(st.sampled_from(JobClass)), min_size=20, max_size=60),
    max_passes=st.integers(1, 5),
)
def test_no_class_waits_for_more_than_its_share_of_slices(
    arrivals: list[set[JobClass]], max_passes: int
) -> None:
    """At most one slice of another class before a safety check; every class in its turn."""
    play = Play(most_rows=1, max_passes=max_passes)
    for classes in arrivals:
        for job_class in classes:
            play.add(job_class, rows=1, horizon=1)
        play.slice()
    waits: dict[JobClass, int] = dict.fromkeys(JobClass, 0)
    for chosen, wants in play.slices:
        for job_class in JobClass:
            is_passed = job_class in wants and chosen is not job_class
            waits[job_class] = waits[job_class] + 1 if is_passed else 0
        assert waits[SAFETY] <= 1
        # Owed after max_passes; then comes one of safety, of the other that is owed, of safety.
        assert max(waits.values()) <= max_passes + 3
