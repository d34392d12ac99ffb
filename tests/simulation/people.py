"""People: they submit jobs and pipelines, change their minds, and make room on machines."""

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from espalier.specs import JobRequest, PipelineRequest
from espalier.states import JOB_ENDED, JobState, Reason
from scheduler.lifecycle import requests, submit
from scheduler.models import Job, Worker
from scheduler.placing import fleet
from tests.simulation.control import Control
from tests.simulation.ledger import Facts
from tests.simulation.machine import Machine
from tests.simulation.world import HORIZON, World

TRAIN = {"kind": "train", "model": "team/base", "data": "team/wikisql"}
POISONS = (Reason.NAN_LOSS, Reason.BAD_INPUT, Reason.PROOF_FAILED, Reason.CODE_ERROR)


class People:
    """What is asked of the control plane, at random moments until the horizon."""

    def __init__(self, world: World, control: Control, machines: list[Machine]) -> None:
        self._world, self._control, self._machines = world, control, machines
        self._number = 0
        random = world.random
        self.total = random.randint(3, 6)
        while self._number < self.total:
            moment = random.choice((0.0, random.uniform(0, HORIZON * 0.7)))
            if random.random() < 0.3:
                world.after(moment, partial(self._pipeline, self._take(3)))
            else:
                world.after(moment, partial(self._job, self._take(1)[0]))
        for _ in range(random.randint(1, 5)):
            world.after(random.uniform(10, HORIZON), self._change_a_mind)

    def _take(self, count: int) -> list[int]:
        self._number += count
        return list(range(self._number - count, self._number))

    # --- Submitting -----------------------------------------------------------------------

    def _train(self) -> tuple[dict[str, Any], Facts]:
        random = self._world.random
        iters, every = random.randint(3, 8), random.randint(1, 3)
        spec = {**TRAIN, "iters": iters, "save_every": every, "batch_size": 8}
        facts = Facts(0, "train", iters, every)
        if random.random() < 0.08:
            facts.poison, facts.poison_step = random.choice(POISONS), random.randint(1, iters)
        if random.random() < 0.12:
            facts.fits = random.choice((0, 1, 2, 4))
            spec["on_oom"] = random.choice(("adapt", "adapt", "fail"))
        return spec, facts

    def _job(self, number: int) -> None:
        random = self._world.random
        spec, facts = self._train()
        envelope = {
            "name": f"team/job-{number}",
            "priority": random.choice((0, 0, 5, -5)),
            "max_attempts": random.randint(1, 4),
        }
        request = JobRequest.model_validate({"spec": spec, **envelope})

        def work(session: Session) -> Job:
            job = submit.submit(session, self._control.actor, request)
            self._known(job, number, facts)
            return job

        self._until_taken("submit", work, partial(self._job, number))

    def _pipeline(self, numbers: list[int]) -> None:
        """Train, then fuse, then measure: the second and third wait for the first."""
        spec, facts = self._train()
        model = {"model": "team/base"}
        fuse = {"kind": "fuse", **model, "adapter": "step:train"}
        measure = {"kind": "eval", "model": "step:fuse", "data": "team/wikisql"}
        steps = [("train", spec), ("fuse", fuse), ("eval", measure)]
        request = PipelineRequest.model_validate(
            {
                "steps": [
                    {"step": step, "spec": spec, "name": f"team/job-{number}"}
                    for number, (step, spec) in zip(numbers, steps, strict=True)
                ]
            }
        )
        known = [facts, Facts(0, "fuse", 2), Facts(0, "eval", 2)]

        def work(session: Session) -> list[Job]:
            jobs = submit.submit_pipeline(session, self._control.actor, request)
            for job, number, fact in zip(jobs, numbers, known, strict=True):
                self._known(job, number, fact)
            return jobs

        self._until_taken("pipeline", work, partial(self._pipeline, numbers))

    def _known(self, job: Job, number: int, facts: Facts) -> None:
        facts.number = number
        self._control.ledger.facts[job.id] = facts

    def _until_taken(self, what: str, work: Any, again: Any) -> None:
        """Whoever gets no answer tries again later; what was rolled back never was."""
        before = dict(self._control.ledger.facts)
        if self._control.ask(what, work) is None:
            self._control.ledger.facts = before
            self._world.after(30, again)

    # --- Changing their minds -------------------------------------------------------------

    def _change_a_mind(self) -> None:
        world, ledger = self._world, self._control.ledger
        what = world.random.choice(("cancel", "pause", "pause", "resume", "retry", "drain"))
        if what == "drain":
            machine = world.random.choice(self._machines)
            self._drain(machine, True)
            world.after(world.random.uniform(30, 200), partial(self._drain, machine, False))
            return
        if not ledger.jobs:
            return
        job_id = world.random.choice(sorted(ledger.jobs))
        self._request(what, job_id)
        if what == "pause":
            delay = world.random.uniform(0, 200)
            world.after(delay, partial(self._request, "resume", job_id))

    def _request(self, what: str, job_id: str) -> None:
        call = {
            "cancel": requests.cancel,
            "pause": requests.pause,
            "resume": requests.resume,
            "retry": requests.retry,
        }[what]
        self._world.counts[f"asked: {what}"] += 1
        self._control.ask(what, lambda s: call(s, self._control.actor, s.get_one(Job, job_id)).id)

    def _drain(self, machine: Machine, draining: bool) -> None:
        def work(session: Session) -> bool:
            worker = session.get_one(Worker, machine.worker_id)
            fleet.set_draining(session, self._control.actor, worker, draining)
            return True

        self._world.counts["asked: drain"] += draining
        self._control.ask("drain", work)

    # --- The morning ----------------------------------------------------------------------

    def tidy(self) -> None:
        """Faults are over: what people hold up goes on; now and then a failed job is retried."""
        for machine in self._machines:
            self._drain(machine, False)
        for job in list(self._control.ledger.jobs.values()):
            if job.pausing and JobState(job.state) not in JOB_ENDED:
                self._request("resume", job.id)
            elif job.state == JobState.FAILED and self._world.random.random() < 0.3:
                self._request("retry", job.id)
