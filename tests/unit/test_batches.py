"""Which keys are looked up together, and which of them are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tenure.bulk.lookup import batches, by_shape, refused_by_halves
from tenure.mapping.keys import Shape, identifiers
from tenure.references.proxy import Proxy, shape_of
from tests.fixtures.models import Country, Region, Seat

SHAPES = {
    name: identifiers(entity).shape(names)
    for name, entity, names in (
        ("seat", Seat, ("hall", "row")),
        ("region", Region, ("country_id", "zone")),
        ("country", Country, ("code",)),
    )
}

parts = st.one_of(st.none(), st.integers(-2, 2))
keys = st.lists(st.tuples(parts, parts).filter(any), max_size=40)
sizes = st.integers(1, 7)


def batched(shape: Shape, values: list[tuple[Any, ...]], size: int) -> list[Any]:
    proxies = [Proxy(shape, key) for key in values]
    return [proxies, list(batches(shape, proxies, values, size=size))]


class TestBatches:
    @given(keys, sizes)
    def test_each_in_one(self, values: list[tuple[Any, ...]], size: int) -> None:
        """Each reference is in exactly one batch, with the values of its key."""
        proxies, found = batched(SHAPES["seat"], values, size)
        places = Counter(id(proxy) for batch in found for proxy in batch.proxies)

        assert dict.fromkeys(map(id, proxies), 1) == places
        for batch in found:
            for proxy, key in zip(batch.proxies, batch.values, strict=True):
                assert key == tuple(v for v in proxy._tenure_values if v is not None)

    @given(keys, sizes)
    def test_size(self, values: list[tuple[Any, ...]], size: int) -> None:
        """No batch is larger than asked for, and none is empty."""
        _, found = batched(SHAPES["seat"], values, size)

        assert all(1 <= len(batch.proxies) <= size for batch in found)

    @given(keys, sizes)
    def test_as_few_as_possible(self, values: list[tuple[Any, ...]], size: int) -> None:
        """There are as many batches as the sizes of the groups need."""
        _, found = batched(SHAPES["seat"], values, size)
        groups = Counter(tuple(part is None for part in key) for key in values)

        assert sum(-(-count // size) for count in groups.values()) == len(found)

    @given(keys, sizes)
    def test_nulls_together(self, values: list[tuple[Any, ...]], size: int) -> None:
        """The keys of a batch are null in the same places, and hold no null."""
        _, found = batched(SHAPES["seat"], values, size)
        for batch in found:
            for proxy, key in zip(batch.proxies, batch.values, strict=True):
                assert batch.nulls == tuple(v is None for v in proxy._tenure_values)
                assert None not in key

    @given(keys, sizes)
    def test_order(self, values: list[tuple[Any, ...]], size: int) -> None:
        """The order of references is kept inside a group."""
        proxies, found = batched(SHAPES["seat"], values, size)
        places = {id(proxy): place for place, proxy in enumerate(proxies)}
        groups: dict[tuple[bool, ...], list[int]] = {}
        for batch in found:
            group = groups.setdefault(batch.nulls, [])
            group.extend(places[id(proxy)] for proxy in batch.proxies)

        assert all(sorted(group) == group for group in groups.values())


class TestByShape:
    @given(st.lists(st.sampled_from(sorted(SHAPES)), max_size=30))
    def test_groups(self, names: list[str]) -> None:
        """References are grouped by the shape of their key, in their order."""
        proxies = [Proxy(SHAPES[name], (n, n)) for n, name in enumerate(names)]
        groups = by_shape(proxies)

        assert sorted(map(id, proxies)) == sorted(
            id(proxy) for group in groups.values() for proxy in group
        )
        for shape, group in groups.items():
            numbers = [proxy._tenure_values[0] for proxy in group]
            assert {shape} == {shape_of(proxy) for proxy in group}
            assert sorted(numbers) == numbers


class TestRefusedByHalves:
    @given(st.lists(st.booleans(), max_size=40))
    def test_all_found(self, refusals: list[bool]) -> None:
        """Each item is done once, or told once with its error, in order."""
        done: list[int] = []

        def step(items: Sequence[int]) -> Exception | None:
            refused = [n for n in items if refusals[n]]
            if refused:
                return ValueError(refused)
            done.extend(items)
            return None

        told = list(refused_by_halves(range(len(refusals)), step))

        assert [n for n, refused in enumerate(refusals) if not refused] == done
        assert [n for n, refused in enumerate(refusals) if refused] == [
            n for n, _ in told
        ]
        assert all([[n]] == list(error.args) for n, error in told)

    @given(st.integers(0, 999))
    def test_few_steps(self, bad: int) -> None:
        """One among a thousand takes about twice its binary logarithm of steps."""
        steps = 0

        def step(items: Sequence[int]) -> Exception | None:
            nonlocal steps
            steps += 1
            return ValueError() if bad in items else None

        assert [bad] == [n for n, _ in refused_by_halves(range(1_000), step)]
        assert 2 * 10 + 1 >= steps
