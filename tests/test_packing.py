"""Packing loses nothing, repeats nothing and mixes nothing, and the step alone says what is read."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from factories import loss_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import LOSS, NO_LOSS, TAG, PretrainDataset, SFTDataset, begins_in_text
from engine.corpus.token_cache import TokenCache
from engine.loss import count_tokens
from engine.packing import Batches, Segments, pack, pack_dense, split_documents, truncate_conversations

ROW_LEN = 16


def cache_of(ids, classes, lengths) -> TokenCache:
    offsets = np.concatenate([[0], lengths]).astype(np.int64).cumsum()
    ids, classes = np.array(ids, np.uint16), np.array(classes, np.uint8)
    return TokenCache(None, ids, classes, offsets, offsets[1:], None, {"end_id": 2})


def made(lengths) -> TokenCache:
    """Documents of the tokens 1, 2, 3, ... over all of them: each token tells where it is from."""
    classes = np.full(sum(lengths), LOSS)
    classes[np.cumsum([0, *lengths[:-1]])] = NO_LOSS
    return cache_of(np.arange(sum(lengths)) + 1, classes, lengths)


def batches_of(
    cache, row_len=ROW_LEN, batch_size=2, rows_per_step=4, seed=0, table=None, borders=(), **split
) -> Batches:
    segments = split_documents(cache, np.arange(len(cache)), row_len)
    return Batches(
        cache,
        pack(segments, row_len, 0, borders=borders),
        table or loss_weights(),
        batch_size=batch_size,
        rows_per_step=rows_per_step,
        seed=seed,
        **split,
    )


def epoch(batches: Batches, number: int = 0) -> list:
    first = number * batches.steps_per_epoch
    return list(chain.from_iterable(map(batches.step, range(first, first + batches.steps_per_epoch))))


def row_order(batches: Batches, number: int = 0) -> list[int]:
    first = number * batches.steps_per_epoch
    steps = range(first, first + batches.steps_per_epoch)
    return np.concatenate([batches.row_numbers(step) for step in steps]).tolist()


@pytest.fixture
def corpus():
    """Some 70 documents of 2 to 40 tokens, so more than twice the row."""
    return made(np.random.Generator(np.random.Philox(1)).integers(2, 41, 71).tolist())


def same(batches, others) -> bool:
    return len(batches) == len(others) and torch.equal(*(torch.cat([*map(flat, part)]) for part in (batches, others)))


def flat(batch) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in batch])


# ------------------------------------------------------------------------------------------------- packing


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=60))))
def test_pack_loses_no_prediction_and_repeats_none(case):
    row_len, lengths = case
    segments = Segments(np.arange(len(lengths)) * 100, np.array(lengths, dtype=np.int64))
    rows = pack(segments, row_len, seed=3)
    contents = [rows.order[begin:end] for begin, end in zip(rows.bounds[:-1], rows.bounds[1:], strict=True)]
    assert len(contents) == len(rows) and all(0 < segments.lengths[content].sum() <= row_len for content in contents)
    packed = Counter((int(segments.starts[i]), int(segments.lengths[i])) for i in chain.from_iterable(contents))
    assert packed == Counter(zip(segments.starts.tolist(), lengths, strict=True))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 12), st.lists(st.integers(2, 40), min_size=1, max_size=20), st.integers(1, 3))
def test_every_label_comes_once_an_epoch_and_is_the_next_token(row_len, lengths, batch_size):
    cache = made(lengths)
    found = []
    for batch in epoch(batches_of(cache, row_len, batch_size, 2 * batch_size)):
        real = batch.classes != NO_LOSS
        found += batch.labels[real].tolist()
        assert torch.equal(batch.labels[real], batch.inputs[real] + 1)
        assert not batch.inputs[~real].any() and not batch.labels[~real].any()
    firsts = cache.ids[cache.offsets[:-1]].tolist()  # no label is the first token of a document
    assert sorted(found) == sorted(set(cache.ids.tolist()) - set(firsts))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.lists(st.integers(2, 40), max_size=20), min_size=1, max_size=4), st.integers(1, 20))
def test_files_that_are_packed_apart_share_no_row(files, row_len):
    cache = made(list(chain.from_iterable(files)) or [2])
    segments = split_documents(cache, np.arange(len(cache)), row_len)
    borders = np.cumsum([sum(lengths) for lengths in files])[:-1]
    rows = pack(segments, row_len, 3, borders=borders)
    file_of = np.searchsorted(borders, segments.starts, "right")
    for file, (begin, end) in enumerate(zip(rows.parts[:-1], rows.parts[1:], strict=True)):
        numbers = rows.order[rows.bounds[begin] : rows.bounds[end]]
        assert sorted(numbers) == np.flatnonzero(file_of == file).tolist()
        alone = pack(Segments(segments.starts[numbers], segments.lengths[numbers]), row_len, 5)
        assert end - begin == len(alone)  # as dense as without the others


def test_only_the_documents_asked_for_are_packed(corpus):
    chosen = np.array([3, 8, 50])
    segments = split_documents(corpus, chosen, ROW_LEN)
    labels = []
    for start, length in zip(segments.starts, segments.lengths, strict=True):
        labels += range(start + 1, start + 1 + length)
    expected = [range(corpus.offsets[document] + 1, corpus.offsets[document + 1]) for document in chosen]
    assert sorted(labels) == list(chain.from_iterable(expected))


def test_rows_are_at_least_98_percent_full():
    lengths = np.random.Generator(np.random.Philox(0)).lognormal(5, 0.8, 20_000).astype(int) + 2
    starts = np.concatenate([[0], lengths]).cumsum()
    cache = TokenCache(None, None, None, starts, None, None, {})
    rows = pack_dense(split_documents(cache, np.arange(len(lengths)), 512), 512, 8, 0)
    assert rows.fill_ratio >= 0.98 and rows.row_len == 512


def test_long_conversations_share_longer_rows_until_these_are_dense():
    """More than half a row each: no two fit into one row, and yet at most 2 % may be empty."""
    lengths = np.random.Generator(np.random.Philox(0)).integers(513, 1025, 4_000)
    segments = Segments(np.arange(len(lengths)), lengths)
    assert pack(segments, 1024, 0).fill_ratio < 0.8
    rows = pack_dense(segments, 1024, 16, 0)
    assert rows.fill_ratio >= 0.98 and rows.max_seq_len == 1024 and rows.row_len in (8 * 1024, 16 * 1024)
    assert pack_dense(segments, 1024, 12, 0).row_len in (6 * 1024, 12 * 1024)  # what divides a batch
    assert pack_dense(segments, 1024, 1, 0).row_len == 1024


def test_each_piece_goes_where_it_leaves_the_least_space():
    rows = pack(Segments(np.arange(5), np.array([9, 7, 3, 1, 1])), 10, 0)
    assert [rows.segments.lengths[row].tolist() for row in np.split(rows.order, rows.bounds[1:-1])] == [
        [9, 1],
        [7, 3],
        [1],
    ]
    rows = pack(Segments(np.arange(4), np.array([7, 6, 3, 1])), 10, 0)  # the 3 fits into both rows
    assert [rows.segments.lengths[row].tolist() for row in np.split(rows.order, rows.bounds[1:-1])] == [[7, 3], [6, 1]]


def test_equal_lengths_meet_by_the_seed_and_not_in_file_order():
    segments = Segments(np.arange(100), np.full(100, 4))
    orders = [pack(segments, 16, seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0] != sorted(orders[0])


# ------------------------------------------------------------------------------------------- conversations


@pytest.fixture
def chats(tokenizer):
    """Three exchanges each; returns the cache, and decode(pieces, i) -> what piece i holds, last label included."""
    turn = "user", "assistant"
    long = [
        {"role": turn[i % 2], "content": f"{'</s>' if i % 2 == 0 else ''} turn {i} " + "word " * 9} for i in range(6)
    ]
    documents = SFTDataset(tokenizer).encode([long, [{"role": "system", "content": "s"}, *long[:2]]])
    ids, classes = (np.concatenate(part) for part in zip(*documents, strict=True))
    cache = cache_of(ids, classes, [len(document.ids) for document in documents])

    def decode(segments, i):
        tokens = cache.ids[segments.starts[i] : segments.starts[i] + segments.lengths[i] + 1]
        return tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    return cache, decode


def answer_ends(cache) -> np.ndarray:
    """The predictions of the first conversation up to the end of each of its answers."""
    ids, classes = cache.ids[: cache.offsets[1]], cache.classes[: cache.offsets[1]]
    return np.flatnonzero((ids == 2) & (classes == LOSS))


@pytest.mark.parametrize("last, missing", [(0, 0), (1, 1), (1, 0), (2, 1), (2, 0)])
def test_a_conversation_that_is_too_long_loses_whole_last_turns(chats, last, missing):
    cache, decode = chats
    row_len = answer_ends(cache)[last] - missing
    segments = truncate_conversations(cache, np.arange(2), row_len)
    text, kept = decode(segments, 0), last + 1 - missing
    assert text.count("<s>assistant\n") == kept and text.endswith(f"turn {2 * kept - 1} " + "word " * 9 + "</s>")
    assert segments.lengths[0] <= row_len and segments.truncated == (kept < 3, 0, 0)
    assert cache.offsets[:1] == segments.starts[:1] and len(segments.starts) == 2
    assert segments.lengths[1] == np.diff(cache.offsets)[1] - 1  # the short one is whole


@pytest.mark.parametrize("beyond", ["", "turn that is read, behind the last answer"])
def test_a_conversation_that_keeps_its_answers_has_lost_no_turns(tokenizer, beyond):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    document = SFTDataset(tokenizer).encode([[*turns, {"role": "user", "content": beyond}] if beyond else turns])[0]
    cache = cache_of(document.ids, document.classes, [len(document.ids)])
    end = answer_ends(cache)[-1]
    segments = truncate_conversations(cache, np.arange(1), end)  # at least the line break behind </s> is beyond
    assert segments.lengths.tolist() == [end] and segments.truncated == (0, 0, 0)
    assert truncate_conversations(cache, np.arange(1), end - 1).truncated == (0, 1, 0)  # without its </s>


def test_a_conversation_without_a_complete_answer_is_cut(chats):
    cache, decode = chats
    first_label = np.flatnonzero(cache.classes[: cache.offsets[1]])[0]
    tail = truncate_conversations(cache, np.arange(1), first_label + 3)
    assert tail.lengths.tolist() == [first_label + 3]
    assert tail.truncated == (0, 1, 0)
    assert decode(tail, 0).endswith("<s>assistant\n turn 1 word word")


def test_a_conversation_without_an_answer_is_dropped(chats):
    cache, _ = chats
    first_label = np.flatnonzero(cache.classes[: cache.offsets[1]])[0]
    one_label = truncate_conversations(cache, np.arange(1), first_label)
    assert one_label.lengths.tolist() == [first_label]
    nothing = truncate_conversations(cache, np.arange(1), first_label - 1)
    assert len(nothing.starts) == len(nothing.lengths) == 0
    assert nothing.truncated == (0, 0, 1)


# ------------------------------------------------------------------------------------------------- batches


def test_cu_seqlens_hold_the_start_of_each_document_then_the_size(corpus):
    batches = batches_of(corpus, batch_size=4, rows_per_step=8)
    assert len(batches.rows) % 4  # so there are empty rows, too
    for batch in epoch(batches):
        begins, before = [], -1
        for at, token in enumerate(batch.inputs.flatten().tolist()):
            continues = at % ROW_LEN and (token == before + 1 or token == before == 0)
            if not continues:
                begins.append(at)
            before = token
        assert batch.cu_seqlens.tolist() == [*begins, batch.inputs.numel()] and batch.cu_seqlens.dtype == torch.int32


def test_batches_are_a_function_of_seed_epoch_and_step_alone(corpus):
    files = {"epochs": [2.5, 0.3], "borders": corpus.offsets[[40]]}
    first, again = batches_of(corpus, seed=5, **files), batches_of(corpus, seed=5, **files)
    steps = range(2 * first.steps_per_epoch + 1)
    in_order = {step: first.step(step) for step in steps}
    assert all(same(again.step(step), in_order[step]) for step in (*reversed(steps), 3))


def test_every_row_comes_once_an_epoch_in_an_order_of_epoch_and_seed(corpus):
    batches, other = batches_of(corpus, seed=5), batches_of(corpus, seed=6)
    orders = [row_order(batches, 0), row_order(batches, 1), row_order(other, 0)]
    everything = list(range(len(batches.rows)))
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in [*orders, everything]}) == 4
    unseeded = batches_of(corpus, seed=None)
    assert row_order(unseeded, 0) == row_order(unseeded, 1) == everything


def test_one_file_is_read_in_the_permutation_of_seed_and_epoch(corpus):
    """Also with every whole number of times: the rows of an epoch are shuffled together."""
    for times in (1, 3):
        batches = batches_of(corpus, seed=5, epochs=[times])
        for number in (0, 1, 4):
            generator = np.random.Generator(np.random.Philox(key=[5, number]))
            expected = generator.permutation(np.repeat(np.arange(len(batches.rows)), times)).tolist()
            assert row_order(batches, number) == expected


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.floats(0.05, 3), min_size=3, max_size=3), st.integers(0, 9))
def test_an_epoch_reads_each_file_as_often_as_asked(epochs, seed):
    cache = made(np.random.Generator(np.random.Philox(1)).integers(2, 41, 71).tolist())
    batches = batches_of(cache, seed=seed, borders=cache.offsets[[20, 30]], epochs=epochs)
    sizes, read = np.diff(batches.rows.parts), np.zeros(len(batches.rows), np.int64)
    for number in range(5):
        numbers = np.array(row_order(batches, number))
        before, read = read, read + np.bincount(numbers, minlength=len(read))
        for part, size in enumerate(sizes):
            rows = slice(*batches.rows.parts[part : part + 2])
            assert (read - before)[rows].sum() == round(size * epochs[part])
            assert read[rows].max() - read[rows].min() <= 1  # none again before all others
    tokens = [sum(batches.positions(step) for step in range(batches.steps_per_epoch))]
    assert tokens == [batches.num_tokens[row_order(batches)].sum()]


def test_a_fraction_draws_from_all_of_the_file_by_the_seed():
    """Also where each document is a row, which packing leaves in an order of the seed, too."""
    cache = made([ROW_LEN + 1] * 200)
    for seed in (0, 5):
        batches = batches_of(cache, seed=seed, epochs=[0.25])
        begins = batches.rows.segments.starts[batches.rows.order[row_order(batches)]]
        assert len(begins) == 50 and begins.max() > 180 * (ROW_LEN + 1) and (np.diff(np.sort(begins)) > 17).sum() > 20
    assert set(row_order(batches)) != set(row_order(batches_of(cache, seed=6, epochs=[0.25])))


@pytest.mark.parametrize("epochs", [[1], [2.4, 0.3]])
def test_two_ranks_read_the_rows_of_one(corpus, epochs):
    files = {"epochs": epochs, "borders": corpus.offsets[[40]][: len(epochs) - 1]}
    alone = batches_of(corpus, batch_size=2, rows_per_step=8, **files)
    ranks = [batches_of(corpus, batch_size=2, rows_per_step=8, rank=rank, world_size=2, **files) for rank in (0, 1)]
    assert {each.steps_per_epoch for each in ranks} == {alone.steps_per_epoch} and alone.rows_per_epoch.sum() % 8
    for step in range(2 * alone.steps_per_epoch):
        expected = alone.step(step)
        micro = list(chain.from_iterable(zip(*(source.step(step) for source in ranks), strict=True)))
        assert same(micro[: len(expected)], expected)
        assert not any(batch.inputs.any() or batch.classes.any() for batch in micro[len(expected) :])


def test_the_last_partial_step_is_filled_with_empty_rows_of_class_0(corpus):
    rows = len(batches_of(corpus).rows)
    batches = batches_of(corpus, batch_size=rows - 1, rows_per_step=2 * (rows - 1))
    assert batches.steps_per_epoch == 1
    full, last = batches.step(0)
    assert full.inputs[:, 0].all() and full.inputs.shape == last.inputs.shape == (rows - 1, ROW_LEN)
    assert last.inputs[0, 0] and last.classes[0, 0] == LOSS
    assert not any(part[1:].any() for part in (last.inputs, last.labels, last.classes))


def test_rows_that_do_not_divide_and_no_rows_are_refused(corpus):
    with pytest.raises(ValueError, match="10 rows a step do not divide into 2 ranks x 3 rows"):
        batches_of(corpus, batch_size=3, rows_per_step=10, world_size=2)
    with pytest.raises(ValueError, match="no rows"):
        Batches(
            corpus,
            pack(split_documents(corpus, np.arange(0), 8), 8, 0),
            loss_weights(),
            batch_size=1,
            rows_per_step=1,
            seed=0,
        )


def test_count_tokens_counts_real_trained_and_tag_tokens_and_bytes():
    cache = cache_of([1, 10, 11, 12, 2, 1, 13, 2], [NO_LOSS, NO_LOSS, TAG, TAG, LOSS, NO_LOSS, LOSS, LOSS], [5, 3])
    sizes = torch.zeros(14, dtype=torch.int32)
    sizes[10:] = torch.tensor([1000, 1, 10, 100])
    batches = batches_of(cache, row_len=8, batch_size=1, rows_per_step=2, table=loss_weights(3.0))  # 2 of 8 stay empty
    counted = count_tokens(batches.step(0), sizes, batches.positions(0))
    assert (counted.weight_sum, counted.loss_tokens, counted.tags, counted.bytes, counted.positions) == (
        9.0,
        5,
        2,
        111,
        6,
    )
    assert (counted + counted).positions == 12


# ------------------------------------------------------------------------------- texts next to conversations


def mix(tokenizer, contents) -> TokenCache:
    documents = SFTDataset(tokenizer).encode(contents)
    ids, classes = (np.concatenate(part) for part in zip(*documents, strict=True))
    return cache_of(ids, classes, [len(document.ids) for document in documents])


def test_long_text_is_split_and_the_chats_beside_it_stay_as_they_are(tokenizer):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 20}] * 3
    texts = ["boat " * 90, "a boat", "ship " * 64]
    alone, mixed = mix(tokenizer, [turns, turns[:2]]), mix(tokenizer, [turns, texts[0], turns[:2], *texts[1:]])
    row_len = 112
    expected = truncate_conversations(alone, np.arange(2), row_len)
    segments = truncate_conversations(mixed, np.arange(5), row_len)
    parts = [mixed.ids[start : start + length + 1] for start, length in zip(*segments[:2], strict=True)]
    is_text = begins_in_text(mixed.classes, segments.starts)
    chats = [alone.ids[start : start + length + 1] for start, length in zip(*expected[:2], strict=True)]
    assert segments.truncated == expected.truncated == (1, 0, 0)
    assert [ids.tolist() for ids, flag in zip(parts, is_text, strict=True) if not flag] == [
        ids.tolist() for ids in chats
    ]
    whole = split_documents(mixed, np.array([1, 3, 4]), row_len)
    assert max(whole.lengths) == row_len and len(whole.lengths) > 3
    assert Counter(segments.starts[is_text].tolist()) == Counter(whole.starts.tolist())
    assert sum(segments.lengths[is_text]) == sum(whole.lengths)
    labels = np.concatenate([ids[1:] for ids, flag in zip(parts, is_text, strict=True) if flag])
    told = np.concatenate([document.ids[1:] for document in PretrainDataset(tokenizer).encode(texts)])
    assert Counter(labels.tolist()) == Counter(told.tolist())
