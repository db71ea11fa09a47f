"""Gradients from Lambda workers: one execution of the peer's state machine per round, one invocation per share of
its batches (peer_agent/compute/division.py).

Nothing large passes through Step Functions: workers read weights and batches from S3 and write their gradients there,
from where they are added up one by one. So memory is bounded by the model, whatever the number of batches.

Where that is worth it (contract/tree.py), the same execution adds them up, and the peer reads one mean.

Shares fail and executions fail. What has been computed is never computed again: where an execution ends for no item's
sake, another one takes the shares that are missing, and so does a process that begins a round anew. Shares that failed
for good are left out of the mean, as far as `compute.tolerated_failures` goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.ahead import fetched_ahead, how_far_ahead
from contract.batches import BatchRef, Share, share_count
from contract.clock import Clock
from contract.codec import codec
from contract.errors import ConfigError, GradientFailed, PermanentError, StoreUnavailable
from contract.extensions import Measured
from contract.gradient_frames import checked
from contract.keys import Place
from contract.local_steps import LocalSteps
from contract.models import build
from contract.runspec import RunSpec
from contract.store import ObjectStore
from contract.tasks import GradientTask, distributed_input, inline_input, items_json
from contract.tensors import Buffers, Layout, unpack_buffers
from peer_agent.compute import diagnosis, tolerance
from peer_agent.compute.batches import BatchMean, failing_as, name_batch, of_part, whole, work_of, work_told
from peer_agent.compute.diagnosis import Ending
from peer_agent.compute.division import Division, lanes
from peer_agent.compute.executions import FORGOTTEN, Executions
from peer_agent.compute.inquiry import Inquiry
from peer_agent.compute.moments import WorkerMoments
from peer_agent.compute.reduced import Outcome, Tree, is_reduced
from peer_agent.compute.results import Effort, Results, Unusable, using
from peer_agent.membership import FIRST_INCARNATION
from peer_agent.ports import RoundGradient

#: Forms of the state machine's input; the launcher resolves `auto` before it writes the run's configuration.
MODES = ("inline_map", "distributed_map", "parallel")
#: Executions that one round may take in one go.
MOST_EXECUTIONS = 10
#: Rounds that are remembered as begun; no more than two are computed at the same time.
REMEMBERED = 8


class StepFunctionsGradientService:
    """Starts, follows and reads the executions of one peer's state machine."""

    def __init__(
        self,
        spec: RunSpec,
        rank: int,
        *,
        store: ObjectStore,
        endpoint_url: str | None,
        clock: Clock,
        client: Any = None,
    ) -> None:
        """`endpoint_url` names another Step Functions than AWS's; `client` replaces boto3's. Nothing is contacted yet.

        Raises ModelError when the model cannot be built, ConfigError for a run without a state machine or mode.
        """
        self._mode = spec.config.compute.state_machine
        machine = spec.state_machines[rank]
        if self._mode not in MODES or not machine:
            raise ConfigError(
                f"run {spec.run} names no state machine for rank {rank} (compute.state_machine = {self._mode!r}); "
                "start it again"
            )
        self._spec, self._rank, self._store = spec, rank, store
        self._layout = Layout.of(build(spec.model))
        self._moments = WorkerMoments(spec, rank, store)
        self._division = Division(
            spec.config.compute.batches_per_worker,
            lanes=lanes(spec, local=bool(endpoint_url)),
            result_bytes=codec(spec.config.compute.gradient_codec).encoded_bytes(self._layout.elements),
        )
        self._executions = Executions(
            machine,
            express=spec.config.aws.express and self._mode == "inline_map",
            endpoint_url=endpoint_url,
            region=spec.places.region,
            clock=clock,
            client=client,
        )
        self._inquiry = Inquiry(self._executions, rank, spec.config.compute)
        self._begun: deque[int] = deque(maxlen=REMEMBERED)

    def compute(
        self,
        *,
        round: int,
        incarnation: int,
        weights_sha256: str,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
        steps: LocalSteps | None = None,
    ) -> RoundGradient:
        """Gradient at the weights `weights_sha256` in the run's bucket; see GradientService.

        Raises GradientFailed, TransientError when Step Functions does not answer, StoreUnavailable.
        """
        if steps is None:
            items = self._division.divide(batches)
        else:  # one invocation takes all of them
            steps = self._moments.place(steps, round)
            steps = dataclasses.replace(steps, batches=tuple(batch.index for batch in batches))
            items = (Share((whole(batches),)),)
        task = self._task(round, incarnation, weights_sha256, items[0].batches[0], seed, steps)
        results, effort = Results(self._store, task), Effort()
        with effort.charged():
            self._execute(task, items, results, effort)
            gradient, step_seconds, used = self._collect_usable(task, items, results, effort, buffers)
        distributed = self._mode == "distributed_map"
        garbage = [results.place(item.index) for item in used]
        if distributed:
            garbage.append(self._items_place(task))
        if (tree := effort.tree or self._tree(task, items, results)) is not None:
            garbage += tree.garbage(distributed)
        if steps is None:
            self._division.measured(step_seconds)
        else:
            self._moments.tidy(steps, round)
        with contextlib.suppress(StoreUnavailable):  # what stays costs some storage until the run is removed
            self._store.delete(garbage)
        return dataclasses.replace(
            gradient,
            invocations=effort.invocations,
            reducers=effort.reducers,
            executions=effort.executions,
            reductions=effort.reductions,
            children=effort.children,
            items=len(items),
            bytes_out=effort.bytes_out,
            failures=tuple(effort.failures[index] for index in effort.missing),
            batches_failed=sum(len(item.batches) for item in items if item.index in effort.missing),
            not_reduced=effort.not_reduced,
        )

    def close(self) -> None:
        """Stop running executions; the `compute` that waits for one raises GradientFailed."""
        self._executions.close()

    def _task(
        self, round: int, incarnation: int, weights: str, batch: BatchRef, seed: int, steps: LocalSteps | None
    ) -> GradientTask:
        """The round's task; which batch it names does not matter to what all batches share."""
        config = self._spec.config
        return GradientTask(
            places=self._spec.places,
            rank=self._rank,
            round=round,
            incarnation=incarnation,
            model=self._spec.model,
            weights_sha256=weights,
            loss=config.loss,
            steps=steps,
            precision=config.compute.precision,
            codec=config.compute.gradient_codec,
            seed=seed,
            threads=config.compute.threads,
            channels_last=config.compute.channels_last,
            batch=batch,
            code_digest=self._spec.code_digest,
        )

    def _tree(self, task: GradientTask, items: Sequence[Share], results: Results) -> Tree | None:
        """How the gradients of all items are to be added up; None where the peer does that."""
        compute = self._spec.config.compute
        if not is_reduced(compute, self._layout.elements, len(items)):
            return None
        return Tree.over(task, items, results.incarnation, self._layout, compute.tolerated_failures > 0)

    def _input(self, task: GradientTask, items: Sequence[Share], tree: Tree | None) -> tuple[str, int]:
        """The execution's input, and the bytes that went to S3 beside it. Raises PeerlessError."""
        common, distributed = task.common_dict(), self._mode == "distributed_map"
        reduce = None if tree is None else tree.part(distributed)
        if not distributed:
            return inline_input(common, self._branches(items), reduce), 0
        lists = {self._items_place(task): items_json(items)}
        if tree is not None:
            lists[tree.groups_place] = tree.groups_json()
        for place, listed in lists.items():
            self._store.put(place, listed)
        return distributed_input(common, self._items_place(task), reduce), sum(map(len, lists.values()))

    def _items_place(self, task: GradientTask) -> Place:
        return self._spec.places.items(self._rank, task.round, task.incarnation)

    def _branches(self, shares: Sequence[Share]) -> Sequence[Share]:
        """What the execution computes: in `parallel` as many shares as the definition has branches.

        A round at the end of a pass may have fewer, and what is left of a round has; the last one is then computed
        again, to the same gradient.
        """
        per_worker = self._spec.config.compute.batches_per_worker
        if self._mode != "parallel" or not isinstance(per_worker, int):
            return shares
        per_round = self._spec.config.batches_per_round or self._spec.batches[self._rank]
        branches = share_count(min(per_round, self._spec.batches[self._rank]), per_worker)
        return [*shares, *[shares[-1]] * (branches - len(shares))]

    def _execute(self, task: GradientTask, items: Sequence[Share], results: Results, effort: Effort) -> None:
        """Run executions until all items have a result but those that may fail. Raises GradientFailed, TransientError.

        Only here are items looked for in S3: before the first execution where another attempt may have left some, and
        after one that did not answer for all.
        """
        again = task.round in self._begun or (not self._begun and task.incarnation > FIRST_INCARNATION)
        self._begun.append(task.round)
        missing: Sequence[Share] = results.missing(items) if again else items
        while missing:
            with failing_as(f"rank {self._rank} in round {task.round}"):
                effort.tree = self._tree(task, items, results)
                text, bytes_beside = self._input(task, missing, effort.tree)
            description = self._executions.run(task, text)
            ending = self._inquiry.ending(description, missing)
            effort.executions += 1
            effort.reductions += effort.tree is not None
            if self._mode == "distributed_map":
                effort.children += len(missing) + (len(effort.tree.levels[0]) if effort.tree is not None else 0)
            effort.invocations += ending.invocations
            effort.bytes_out += len(text.encode()) + bytes_beside
            if effort.tree is not None:
                children = functools.partial(self._inquiry.failed_children, description)
                outcome = Outcome.of(description, effort.tree, self._spec.config.compute, children)
                effort.reducers += outcome.invocations
                effort.invocations += outcome.invocations
                effort.not_reduced = outcome.failure
            if ending.complete:
                return
            missing = self._remaining(task, items, missing, description, ending, results, effort)

    def _remaining(
        self,
        task: GradientTask,
        items: Sequence[Share],
        asked: Sequence[Share],
        description: Mapping[str, Any],
        ending: Ending,
        results: Results,
        effort: Effort,
    ) -> Sequence[Share]:
        """What another execution is to compute after one that left something open; the rest is given up.

        Raises GradientFailed where that is too much.
        """
        setting = self._spec.config.compute.tolerated_failures
        if not (setting or ending.succeeded or ending.whole):
            raise GradientFailed(self._inquiry.explain(task.round, asked, description, results))
        missing = results.missing(asked)
        forgotten = description["status"] == FORGOTTEN
        if ending.whole and (forgotten or len(missing) < len(asked)) and effort.executions < MOST_EXECUTIONS:
            return missing
        # A distributed map counts the items of one execution; here it is those of the round.
        counted = ending.succeeded or description.get("error") == diagnosis.CHILD_FAILED
        if missing and not counted:
            raise GradientFailed(self._inquiry.explain(task.round, asked, description))
        effort.missing = [item.index for item in missing]
        if missing:
            effort.failures |= self._inquiry.failures(task.round, description, ending)
        for index in effort.missing:
            where = name_batch(index, self._rank, task.round)
            effort.failures.setdefault(index, f"no gradient for {where}: its worker left none")
        self._check_tolerance(items, effort)
        return []

    def _check_tolerance(self, items: Sequence[Share], effort: Effort) -> None:
        """Raises GradientFailed where more batches are given up than may be."""
        lost = [batch.index for item in items if item.index in effort.missing for batch in item.batches]
        count = sum(len(item.batches) for item in items)
        tolerance.check(self._spec.config.compute.tolerated_failures, count, effort.failures, lost)

    def _collect_usable(
        self, task: GradientTask, items: Sequence[Share], results: Results, effort: Effort, buffers: Buffers
    ) -> tuple[RoundGradient, list[float], Sequence[Share]]:
        """The mean over all items but those given up, which are more where results turn out to be of no use; the
        workers' seconds per batch, and the items in it. Raises GradientFailed."""
        bytes_in = 0
        while True:
            used = [item for item in items if item.index not in effort.missing]
            try:
                gradient, step_seconds = self._read_mean(used, effort, buffers) or self._collect(
                    task, items, used, results, buffers
                )
                return dataclasses.replace(gradient, bytes_in=bytes_in + gradient.bytes_in), step_seconds, used
            except Unusable as error:
                results.forget(error.index)
                effort.missing.append(error.index)
                effort.failures[error.index] = str(error)
                self._check_tolerance(items, effort)

    def _read_mean(
        self, used: Sequence[Share], effort: Effort, base: Buffers
    ) -> tuple[RoundGradient, list[float]] | None:
        """What the reducers made, if it is of use. Raises TransientError."""
        if effort.tree is None or effort.not_reduced:
            return None
        try:
            part, bytes_in = effort.tree.read(self._store, self._layout, used)
        except PermanentError as error:
            effort.not_reduced = f"{error} ({type(error).__name__})"
            return None
        told = part.reduced
        work = work_told(max(len(share.batches) for share in used), told)
        gradient = dataclasses.replace(of_part(self._layout, part, base), bytes_in=bytes_in, work=work)
        return gradient, [told.step_seconds] if told.told else []

    def _collect(
        self, task: GradientTask, shares: Sequence[Share], used: Sequence[Share], results: Results, base: Buffers
    ) -> tuple[RoundGradient, list[float]]:
        """Read the gradients of those `shares` that are `used` one after another and add them up; the mean, and the
        seconds per batch that the workers measured. Raises Unusable."""
        as_tree = is_reduced(self._spec.config.compute, self._layout.elements, len(shares))
        mean = BatchMean(self._layout, shares if as_tree else used, as_tree=as_tree)
        bytes_in, measured = 0, list[Measured]()
        elements, buffers_bytes = self._layout.elements, self._layout.buffers_bytes

        missing = {share.index for share in shares} - {share.index for share in used}

        def fetch(share: Share) -> bytes | None:
            if share.index in missing:
                return None
            with using(share.index, task):
                return self._store.get(results.place(share.index))

        ahead = how_far_ahead(codec(task.codec).encoded_bytes(elements))
        for share, blob in fetched_ahead(fetch, shares, ahead=ahead):
            if blob is None:
                mean.skip()
                continue
            bytes_in += len(blob)
            with using(share.index, task):
                place = results.place(share.index)
                frame = checked(blob, place, task, share.samples, elements=elements, buffers_bytes=buffers_bytes)
                header = frame.header
                added = unpack_buffers(self._layout, frame.buffers)
                mean.add(frame.payload, codec(header.codec), added, header.samples, header.loss or 0.0)
                if header.measured is not None:
                    measured.append(header.measured)
            del frame, blob  # before the next one is fetched
        most = max(len(share.batches) for share in used) if task.steps is None else len(task.steps.batches)
        made = dataclasses.replace(mean.result(base), bytes_in=bytes_in, work=work_of(most, measured))
        return made, [each.step_seconds for each in measured]
