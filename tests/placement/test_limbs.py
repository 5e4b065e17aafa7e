"""Programs divided by limbs: the same residues on any number of devices, and what they exchange."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ClusterError
from aegis_dask.placement.limbs.late import LateDivision
from aegis_dask.placement.limbs.plan import plan_by_limbs
from aegis_dask.placement.limbs.record import Recording, record
from aegis_dask.placement.limbs.rounds import EXCHANGES, Exchange, Schedule, schedule
from aegis_dask.placement.limbs.shard import KeyLookup, Shard, State, key_lookup
from aegis_dask.placement.limbs.trace import Recorder
from aegis_dask.placement.limbs.volume import paper, scheme_of, volume, volumes
from aegis_dask.placement.predict import predict
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, Program, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Refresh
from aegis_dask.program.symbolic import Analysis, Cost, Coupled, analyse
from tests.runtime.programs import SLOTS, model


@pytest.fixture(scope="module")
def prepared() -> tuple[Program, Parameters, EvaluationKeys, dict[str, Any], CipherArray, Analysis]:
    program, store = model()
    params = Parameters.preset("insecure-n10-d40")
    assert params.slots == SLOTS
    analysis = analyse(program, params, params.max_level)
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=analysis.keys.rotations, conjugation=True)
    shape = program.nodes[program.inputs["x"]].shape
    rng, encryptor = np.random.default_rng(), Encryptor(params, secret)
    x = CipherArray(encryptor.encrypt(rng.uniform(-1, 1, (int(np.prod(shape)), SLOTS))), shape)
    return program, params, keys, store, x, analysis


def together(recording: Recording, plan: Schedule, x: CipherArray, find: KeyLookup) -> Any:
    """Run all devices in turns, and return the residues of the output ``y``."""
    devices = range(plan.devices)
    buffer = recording.input_buffer("x")
    shards = [Shard(plan, d, recording.params.ring, find) for d in devices]
    states = []
    for d in devices:
        own = [i for i, p in enumerate(plan.limbs(buffer)) if plan.owner(p) == d]
        states.append(State({buffer: np.ascontiguousarray(x.batch.data[:, :, own])}))
    before = None
    for current in plan.rounds:
        if before is not None:
            gathers, reductions = before.gathers, before.reductions
            exchanged: list[Any] = []
            for d in devices:
                received = [
                    [shards[e].rows(g.view, plan.owned(g.limbs, e)) for g in gathers]
                    for e in devices
                ]
                addends = [
                    [
                        shards[e].rows(r.view, plan.owned(r.limbs, d))
                        for e in sorted(r.senders - {d})
                    ]
                    for r in reductions
                ]
                exchanged.append((received, addends))
            for d in devices:
                shards[d].accept(before, states[d], *exchanged[d])
        for d in devices:
            shards[d].run(current, states[d])
        before = current
    view = recording.output_view("y")
    out = np.empty(recording.outputs["y"].batch.data.shape, np.uint32)
    for d in devices:
        limbs = plan.limbs_of(view)
        own = plan.owned(limbs, d)
        out[..., [limbs.index(p) for p in own], :] = shards[d].rows(view, own)
    return out


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
@pytest.mark.parametrize("late", [False, True])
def test_residues_are_those_of_one_device(
    prepared: Any, devices: int, exchange: Exchange, late: bool
) -> None:
    program, params, keys, store, x, analysis = prepared
    kind = LateDivision if late else Encrypted
    expected = run(program, kind(Evaluator(params, keys)), {"x": x}, store)["y"]
    recording = record(program, params, analysis.keys, {"x": x}, store, late)
    view = recording.output_view("y")
    plan = schedule(
        params.chain, recording.buffers, recording.instructions, devices, exchange, [view.buffer]
    )
    found = together(recording, plan, x, key_lookup(Evaluator(params, keys)))
    assert np.array_equal(found, expected.batch.data)


def test_limbs_are_held_once_but_those_computed_everywhere(prepared: Any) -> None:
    program, params, _, store, x, analysis = prepared
    recording = record(program, params, analysis.keys, {"x": x}, store)
    plan = schedule(params.chain, recording.buffers, recording.instructions, 3, "input-broadcast")
    special = set(range(len(params.chain.primes), len(params.chain.all_primes)))
    for buffer in range(len(recording.buffers)):
        shared = plan.everywhere.get(buffer, frozenset())
        held = [plan.held(buffer, d) for d in range(3)]
        assert sorted(set().union(*held)) == sorted(plan.limbs(buffer))
        for prime in plan.limbs(buffer):
            assert sum(prime in h for h in held) == (3 if prime in shared else 1)
        if shared:
            assert special <= shared


def test_input_broadcast_sends_less_in_fewer_rounds(prepared: Any) -> None:
    program, params, _, store, x, analysis = prepared
    recording = record(program, params, analysis.keys, {"x": x}, store)
    sizes = []
    exchanges: tuple[Exchange, ...] = ("broadcast", "input-broadcast")
    for exchange in exchanges:
        plan, known = plan_by_limbs(recording, 4, exchange)
        moved = predict(program, plan, analysis.node_bytes).between_workers
        counted = sum(volumes(analysis, scheme_of(params), 4, exchange).values())
        assert 0 <= counted - moved < 0.05 * moved  # one that is rescaled twice is sent once
        sizes.append((moved, len(known.schedule.rounds)))
    assert sizes[1][0] < sizes[0][0]
    assert sizes[1][1] < sizes[0][1]


@pytest.mark.parametrize("devices", [2, 4])
def test_a_sum_that_is_divided_once_is_aggregated_once(devices: int) -> None:
    """2 (l + 2a)(n - 1) limbs whatever the number of terms; broadcasts take l (n - 1) for each."""
    params = Parameters.preset("insecure-n10-d40")
    terms, limbs, special = 8, len(params.window(params.max_level)), 4
    assert len(params.chain.special_primes) == special
    assert params.digits == 4  # one or more for every device

    def build(c: Capture) -> None:
        c.output("y", c.input("x", (terms,)).rotate_sum(range(1, terms + 1)))

    program = capture(SLOTS, build)
    required = analyse(program, params, params.max_level).keys
    data = np.zeros((terms, 2, limbs, params.ring_degree), np.uint32)
    zeros = Ciphertext(params, data, params.max_level, params.scales[params.max_level])
    x = CipherArray(zeros, (terms,))

    def moved(exchange: Exchange, late: bool) -> float:
        recording = record(program, params, required, {"x": x}, {}, late)
        plan, _ = plan_by_limbs(recording, devices, exchange)
        limb = 4 * params.ring_degree * (devices - 1)
        return predict(program, plan, []).between_workers / limb

    assert moved("input-broadcast", False) == moved("cheapest", False) == terms * limbs
    assert moved("output-aggregation", False) == terms * 2 * (limbs + 2 * special)
    assert moved("output-aggregation", True) == 2 * (limbs + 2 * special)
    assert moved("cheapest", True) == 2 * (limbs + 2 * special)
    assert moved("broadcast", True) == terms * limbs + 2 * special


def test_volumes_are_those_of_the_formulas(prepared: Any) -> None:
    """The research note: (l + 2a)(n - 1) and l(n - 1) limbs; 21.5 and 17.5 MiB at 35 + 4."""
    one = Cost(coupled=Counter({Coupled("raised", 14): 1, Coupled("switched", 14): 1}))
    scheme = paper(0)  # level 14 has 35 limbs
    assert volume(one, scheme, 2, "broadcast") == 21.5 * 2**20
    assert volume(one, scheme, 2, "input-broadcast") == 17.5 * 2**20
    assert volume(one, scheme, 4, "input-broadcast") == 52.5 * 2**20
    six = Cost(coupled=Counter({Coupled("raised", 14): 6, Coupled("summed", 14, 6): 1}))
    assert volume(six, scheme, 4, "cheapest") == 105 * 2**20
    # Parts over QP, and the special primes of the sum: 2 (l + 2a)(n - 1).
    assert volume(one, scheme, 4, "output-aggregation") == 2 * (35 + 8) * 3 * 2**19


def test_what_cannot_be_divided_is_refused(prepared: Any) -> None:
    program, params, _, store, x, analysis = prepared
    recording = record(program, params, analysis.keys, {"x": x}, store)
    with pytest.raises(ClusterError, match="no exchange 'gossip'"):
        schedule(params.chain, recording.buffers, recording.instructions, 2, "gossip")  # type: ignore[arg-type]
    recorder = Recorder(params.chain)
    with pytest.raises(ClusterError, match="no data"):
        recorder.to_host(recorder.empty((2, 3)))
    y = recorder.make((2, 2, 4, 8), [0, 1, 2, 3])
    with pytest.raises(ClusterError, match="limbs \\[1, 2\\]"):
        recorder.bind(y[:, :, 0:2], [1, 2])
    with pytest.raises(ClusterError, match="one after the other"):
        y[:, :, ::2]
    with pytest.raises(ClusterError, match="stay apart"):
        y.reshape(2, 8, 8)

    def build(c: Capture) -> None:
        c.output("y", c.apply(Refresh(), c.input("x", (2,))))

    with pytest.raises(ClusterError, match="refreshes ciphertexts"):
        record(capture(SLOTS, build), params, analysis.keys, {}, {})
