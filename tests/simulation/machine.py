"""A machine under a desk: its disk, its wires, and the worker processes that live on it in turn."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from espalier.errors import Conflict, EspalierError, Unavailable
from espalier.ids import new_id
from espalier.messages import Claim, Heartbeat, Held, Hello
from espalier.messages import Machine as Description
from espalier.states import Reason
from tests.simulation.broker import Broker
from tests.simulation.control import Control
from tests.simulation.ledger import Call
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.work import Disk, Work

Answer = Callable[[Any], None]
#: Seconds that a client waits for an answer; how it waits between tries.
TIMEOUT = 30.0
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
GIB = 1 << 30


class Machine:
    """One worker's name, disk and network. At most one process of it lives at a time."""

    def __init__(
        self, world: World, control: Control, broker: Broker, name: str, worker_id: str
    ) -> None:
        self.world, self.control, self.broker = world, control, broker
        self.name, self.worker_id = name, worker_id
        self.installation = new_id()
        self.memory = world.random.choice((16, 24, 64)) * GIB
        self.slots = world.random.choice((1, 1, 2))
        self.disk: dict[str, Disk] = {}
        self.cut_until = -1.0
        self.process: Process | None = None
        world.after(world.random.uniform(0, 10), self.boot)

    def boot(self) -> None:
        if self.process is None or not self.process.alive:
            self.process = Process(self)
            self.process.begin()

    def crash(self, keep_disk: bool, back_after: float) -> None:
        """End the process where it stands; another one starts by and by."""
        if self.process is not None:
            self.process.alive = False
        if not keep_disk:
            self.disk.clear()
        self.world.after(back_after, self.boot)

    def description(self) -> Description:
        return Description(
            hostname=self.name,
            platform="macOS 26.1",
            chip="simulated",
            memory_total=self.memory * 4 // 3,
            memory_limit=self.memory,
            disk_free=1 << 40,
        )


class Process:
    """One boot of a worker: hello, heartbeats, tickets, and the attempts that it runs."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.world, self.control = machine, machine.world, machine.control
        self.boot_id = new_id()
        self.alive = True
        self.frozen_until = -1.0
        self.stopping = False
        self.works: dict[str, Work] = {}
        self._claiming: set[str] = set()
        self._tries = 0

    # --- Time and wires -------------------------------------------------------------------

    def after(self, delay: float, work: Callable[[], None]) -> None:
        """Do it in this process, if it lives by then; a stopped one does it when it goes on."""

        def guarded() -> None:
            if not self.alive:
                return
            if self.world.now < self.frozen_until:
                self.after(self.frozen_until - self.world.now, work)
            else:
                work()

        self.world.after(delay, guarded)

    def call(self, verb: str, attempt_id: str = "") -> Call:
        return Call(self.machine.worker_id, self.boot_id, verb, attempt_id)

    def send(self, verb: str, work: Callable[[], Any], answer: Answer) -> None:
        """Send a request; ``answer`` gets its result or an error, once, if at all."""
        Request(self, verb, work, answer).send()

    # --- Life -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Say hello until it is heard. Which attempts lie here is known before it is said."""
        for disk in self.machine.disk.values():
            if self.boot_id not in disk.boots:
                disk.boots.append(self.boot_id)
        held = [
            Held(attempt_id=disk.attempt_id, boot_id=boot)
            for disk in self.machine.disk.values()
            for boot in disk.boots
            if boot != self.boot_id
        ]
        hello = Hello(
            boot_id=self.boot_id,
            machine=self.machine.description(),
            slots=self.machine.slots,
            installation=self.machine.installation,
            held=tuple(held),
        )
        call = self.call("hello")
        self.send("hello", lambda: self.control.hello(call, hello), self._welcomed)

    def _welcomed(self, result: Any) -> None:
        if isinstance(result, Unavailable):
            self.after(self.backoff(), self.begin)
        elif isinstance(result, EspalierError):
            self._exit(result.detail)
        else:
            self._serve(result.inherited)

    def backoff(self) -> float:
        self._tries += 1
        return BACKOFF[min(self._tries, len(BACKOFF)) - 1]

    def _serve(self, inherited: tuple[str, ...]) -> None:
        from tests.simulation.work import Work

        self._tries = 0
        for attempt_id in list(self.machine.disk):
            if attempt_id in inherited:
                self.world.counts["attempts salvaged"] += 1
                work = self.works[attempt_id] = Work(self, self.machine.disk[attempt_id])
                work.salvage()
            else:
                del self.machine.disk[attempt_id]
        self._beat()
        self.machine.broker.consume(self.machine.worker_id, partial(self.after, 0.0, self.take))

    def _exit(self, why: str) -> None:
        self.world.note("process ends", self.machine.name, why)
        self.alive = False
        self.world.after(self.world.random.uniform(20, 90), self.machine.boot)

    def _beat(self) -> None:
        if not self.works:
            beat, call = Heartbeat(boot_id=self.boot_id), self.call("heartbeat")
            self.send("heartbeat", lambda: self.control.heartbeat(call, beat), self._beaten)
        # Often enough not to count as away.
        self.after(
            self.control.config.report_seconds * self.world.random.uniform(1, 2.5), self._beat
        )

    def _beaten(self, result: Any) -> None:
        if isinstance(result, Conflict):
            self._exit(result.detail)

    def stop(self) -> None:
        """SIGTERM: attempts end by their own hand, then the process."""
        self.stopping = True
        for work in list(self.works.values()):
            work.order_stop(Reason.WORKER_STOPPED)
        self.after(self.world.random.uniform(5, 15), partial(self._exit, "stopped"))

    # --- Tickets --------------------------------------------------------------------------

    def take(self) -> None:
        while len(self.works) + len(self._claiming) <= self.machine.slots and not self.stopping:
            attempt_id = self.machine.broker.take(self.machine.worker_id)
            if attempt_id is None:
                return
            if attempt_id in self.works:
                self.works[attempt_id].hear()
            elif attempt_id not in self._claiming:
                self._claim(attempt_id, 2)

    def _claim(self, attempt_id: str, tries: int) -> None:
        self._claiming.add(attempt_id)
        message, call = Claim(boot_id=self.boot_id), self.call("claim", attempt_id)
        self.send(
            "claim",
            lambda: self.control.claim(call, message),
            partial(self._claimed, attempt_id, tries),
        )

    def _claimed(self, attempt_id: str, tries: int, result: Any) -> None:
        from tests.simulation.work import Disk, Work

        self._claiming.discard(attempt_id)
        if isinstance(result, Unavailable) and tries:
            self._claim(attempt_id, tries - 1)
        elif isinstance(result, EspalierError):
            self.world.note("claim refused", self.machine.name, result.detail)
            self.take()
        else:
            disk = self.machine.disk[attempt_id] = Disk(attempt_id, result.job_id, [self.boot_id])
            work = self.works[attempt_id] = Work(self, disk, result)
            work.begin()
            if self.stopping:
                work.order_stop(Reason.WORKER_STOPPED)

    def over(self, work: "Work") -> None:
        """Nothing of the attempt is left here."""
        self.works.pop(work.disk.attempt_id, None)
        self.machine.disk.pop(work.disk.attempt_id, None)
        self.after(0.0, self.take)


class Request:
    """One request on the wire. It may be lost on either way, be late, or arrive twice."""

    def __init__(
        self, process: Process, verb: str, work: Callable[[], Any], answer: Answer
    ) -> None:
        self._process, self._world = process, process.world
        self._verb, self._work, self._answer = verb, work, answer
        self._answered = False

    def send(self) -> None:
        world, random = self._world, self._world.random
        if self._cut() or world.chance(0.03):
            world.fault("request lost", self._verb)
            self._no_answer(random.uniform(1, TIMEOUT))
            return
        delay = random.uniform(0.005, 0.3)
        if world.chance(0.02):
            world.fault("request late", self._verb)
            delay = random.uniform(5, 240)
        if delay > TIMEOUT:
            self._no_answer(TIMEOUT)
        world.after(delay, self._arrive)  # on its way, whatever becomes of its sender
        if world.chance(0.02):
            world.fault("request doubled", self._verb)
            world.after(delay + random.uniform(0, 300), self._execute)

    def _cut(self) -> bool:
        return self._world.now < self._process.machine.cut_until

    def _arrive(self) -> None:
        result = self._execute()
        if self._cut() or self._world.chance(0.03):
            self._world.fault("answer lost", self._verb)
            self._no_answer(self._world.random.uniform(1, TIMEOUT))
        else:
            delay = self._world.random.uniform(0.005, 0.2)
            self._process.after(delay, partial(self._reply, result))

    def _execute(self) -> Any:
        try:
            return self._work()
        except EspalierError as error:
            if isinstance(error, Conflict) and self._verb in ("report", "checkpoint", "finish"):
                self._world.counts["stale writes refused"] += 1
                self._world.note(f"{self._verb} refused", error.detail)
            return error

    def _no_answer(self, delay: float) -> None:
        self._process.after(delay, partial(self._reply, Unavailable("No answer.")))

    def _reply(self, result: Any) -> None:
        if not self._answered:
            self._answered = True
            self._answer(result)
