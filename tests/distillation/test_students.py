"""Students: a copy with fewer layers, a BiLSTM, embeddings squeezed by PCA."""

import numpy as np
import pytest
import sentences as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn

from microbudget.core.errors import TrainingError
from microbudget.distillation import students


def batch(seed=0, lengths=(7, 3, 5), vocabulary=50):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (len(lengths), 8), generator=generator)
    mask = (torch.arange(8) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def lstm(seed=0, **options):
    return students.bilstm(50, 3, width=6, hidden=5, seed=seed, **options).eval()


def test_a_copy_computes_with_the_layers_it_kept():
    teacher = tiny.classifier(layers=4)
    student = students.keep_layers(teacher, (0, 3)).eval()
    ids, mask = batch()
    hidden = torch.finfo(torch.float32).min  # added to the scores of padded places
    extended = (1.0 - mask[:, None, None, :].float()) * hidden
    x = teacher.encoder.embeddings(ids)
    for i in (0, 3):
        x = teacher.encoder.encoder.layer[i](x, extended)
        x = x[0] if isinstance(x, tuple) else x
    weights = mask.unsqueeze(-1).float()
    by_hand = teacher.heads["task"]((x * weights).sum(1) / weights.sum(1))
    torch.testing.assert_close(student(ids, mask), by_hand)
    assert len(teacher.encoder.encoder.layer) == 4
    assert student.encoder.config.num_hidden_layers == 2
    assert all(p.requires_grad for p in student.parameters())


def test_a_new_head_is_drawn_by_the_seed_and_only_the_active_one_is_kept():
    teacher = tiny.classifier(layers=2)
    teacher.add_head("other", 3)
    a, b, c = (
        students.keep_layers(teacher, [1], new_head=True, seed=seed)
        for seed in (1, 1, 2)
    )
    heads = [m.heads["other"].weight for m in (a, b, c)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert list(a.heads) == ["other"]
    assert heads[0].shape == (3, 48)


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (0, 2), (-1,)])
def test_layers_that_are_not_there(layers):
    with pytest.raises(TrainingError, match="name some of 0 to 1"):
        students.keep_layers(tiny.classifier(layers=2), layers)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 9)
)
def test_padding_changes_nothing(lengths, seed):
    model = lstm(seed)
    ids, mask = batch(seed, tuple(lengths))
    whole = model(ids, mask)
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(whole[row : row + 1], alone)


def test_parity_with_torchs_bidirectional_lstm_on_packed_sentences():
    model = lstm()
    theirs = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in model.forwards.named_parameters():
            own[name].copy_(parameter)
        for name, parameter in model.backwards.named_parameters():
            own[name + "_reverse"].copy_(parameter)
    ids, mask = batch()
    x, states = model.states(ids, mask)
    packed = nn.utils.rnn.pack_padded_sequence(
        x, mask.sum(1), batch_first=True, enforce_sorted=False
    )
    expected, _ = nn.utils.rnn.pad_packed_sequence(
        theirs(packed)[0], batch_first=True, total_length=8
    )
    torch.testing.assert_close(states * mask.unsqueeze(-1), expected)


def test_states_are_as_wide_as_said_and_lead_to_the_models_logits():
    ids, mask = batch()
    for model in (lstm(), tiny.classifier(layers=2)):
        logits, states = students.logits_and_states(model, ids, mask)
        torch.testing.assert_close(logits, model(ids, mask))
        assert [s.shape[-1] for s in states] == students.state_widths(model)
        assert all(s.shape[:2] == ids.shape for s in states)


def test_pca_is_scikit_learns_up_to_sign_and_one_scale():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 3.0
    ours = students.pca_table(torch.tensor(table), 5).double().numpy()
    theirs = PCA(5).fit_transform(table)
    theirs /= theirs.std(ddof=1)
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-5)
    assert abs(ours.std(ddof=1) - 1) < 1e-6
    variances = ours.var(0)
    assert (np.diff(variances) <= 0).all()
