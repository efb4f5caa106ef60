"""Whisper: its conversion, its forward pass against transformers', its students."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from whispers import binary, tiny, variables, write_folder

from microbudget import assets
from microbudget.assets.convert.whisper import whisper_from_ctranslate2
from microbudget.core.errors import AssetError, MicrobudgetError
from microbudget.models import whisper
from microbudget.models import whisper_forward as forward


@pytest.fixture(scope="module")
def random():
    return tiny()


def convert(content, tmp_path):
    ready = tmp_path / "ready"
    ready.mkdir()
    whisper_from_ctranslate2(write_folder(tmp_path / "raw", content), ready)
    return ready


# -- CTranslate2 -> transformers ----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_conversion_gives_the_very_bits_back(random, dtype, tmp_path):
    random = tiny(width=32, seconds=30, positions=448)  # transformers' default sizes
    ready = convert(binary(variables(random, dtype)), tmp_path)
    tensors = load_file(ready / "model.safetensors")
    for name, expected in random.model.state_dict().items():
        if name != "proj_out.weight":
            given = tensors[name].numpy()
            assert given.tobytes() == expected.numpy().astype(dtype).tobytes(), name
    again = whisper.load_folder(ready)
    assert again.layers == random.layers
    assert again.model.generation_config.begin_suppress_tokens == [220, 50256]
    assert again.model.proj_out.weight is again.model.model.decoder.embed_tokens.weight


def test_the_real_weights_are_what_the_wheel_holds():
    real = whisper.load("whisper-tiny.en")
    assert assets.verify("whisper-tiny.en", "mini") == []
    assert real.layers == (4, 4)
    assert sum(real.parameters()) == 37_760_256
    tokenizer = real.processor.tokenizer
    # a timestamp token is no text, and it is not 2.12 s late
    assert tokenizer.decode([50363], decode_with_timestamps=True) == "<|0.00|>"
    assert tokenizer.decode([50363 + 50], decode_with_timestamps=True) == "<|1.00|>"


@pytest.mark.parametrize(
    "change", [{"version": 5}, {"spec": "TransformerSpec"}, {"revision": 4}]
)
def test_another_format_is_refused(random, change, tmp_path):
    with pytest.raises(AssertionError, match=r"model\.bin"):
        convert(binary(variables(random), **change), tmp_path)


def test_a_bias_for_keys_is_refused(tmp_path):
    """Whisper's keys have none: it would be lost."""
    whole = variables(tiny(width=32, seconds=30, positions=448))
    bias = {"decoder/layer_0/attention/linear_1/bias": np.ones(64, np.float16)}
    with pytest.raises(AssertionError, match="linear_1/bias"):
        convert(binary(whole | bias), tmp_path)


# -- loading ------------------------------------------------------------------------


def test_a_damaged_folder_is_a_clear_error(tmp_path):
    with pytest.raises(AssetError, match=r"no config\.json"):
        whisper.load_folder(tmp_path)
    source = assets.fetch("whisper-tiny.en")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AssetError, match="can't be loaded"):
        whisper.load_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(AssetError, match="not a Whisper"):
        whisper.load_folder(tmp_path)


def test_nan_weights_are_refused(random, tmp_path):
    broken = tiny(seed=3)
    with torch.no_grad():
        broken.model.model.decoder.layer_norm.bias[3] = torch.nan
    whisper.save(broken, tmp_path / "broken")
    with pytest.raises(AssetError, match="not finite"):
        whisper.load_folder(tmp_path / "broken")


def test_what_is_saved_is_loaded(random, tmp_path):
    path = whisper.save(random, tmp_path / "saved")
    again = whisper.load_folder(path)
    expected = {n: p.half().float() for n, p in random.model.state_dict().items()}
    torch.testing.assert_close(dict(again.model.state_dict()), expected, rtol=0, atol=0)
    whisper.save(again, path)  # over what is there
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


# -- the forward pass ---------------------------------------------------------------


def sound(seconds=1.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, int(16_000 * seconds)).astype("f4")


def test_encoder_and_decoder_equal_transformers(random):
    model = random.model
    samples = [sound(), sound(2.5, seed=1)]  # one shorter and one longer than 2 s
    mel = forward.log_mel(random, samples, seconds=2.0)
    assert mel.shape == (2, 80, 200)
    whole = random.processor(samples, sampling_rate=16_000, return_tensors="pt")
    assert torch.equal(forward.log_mel(random, samples), whole.input_features)
    tokens = torch.randint(0, 50000, (2, 7))
    with torch.inference_mode():
        states = forward.encode(model.model.encoder, mel)
        theirs = model.model.encoder(mel).last_hidden_state
        torch.testing.assert_close(states, theirs, rtol=1e-4, atol=1e-4)
        hidden = forward.decode(model.model.decoder, tokens, states)
        logits = forward.project(model.model.decoder, hidden)
        their_logits = model(input_features=mel, decoder_input_ids=tokens).logits
        torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_cache_changes_nothing(random, cut):
    """Token by token, in two parts, and after taking tokens back."""
    decoder = random.model.model.decoder
    states = torch.randn(2, 40, 64)
    tokens = torch.randint(0, 50000, (2, 7))
    with torch.inference_mode():
        whole = forward.decode(decoder, tokens, states)
        cache = forward.new_cache(decoder, states, room=9)
        first = forward.decode(decoder, tokens[:, :cut], cache=cache)
        forward.decode(decoder, tokens[:, :2] + 5, cache=cache)  # wrong ones
        cache.length = cut  # are forgotten
        second = forward.decode(decoder, tokens[:, cut:], cache=cache)
    together = torch.cat([first, second], 1)
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-4)


def test_masked_sound_is_not_heard(random):
    decoder = random.model.model.decoder
    states = torch.randn(2, 40, 64)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    tokens = torch.randint(0, 50000, (2, 5))
    with torch.inference_mode():
        a = forward.decode(decoder, tokens, states, mask)
        states[1, 25:] = 99.0
        b = forward.decode(decoder, tokens, states, mask)
        short = forward.decode(decoder, tokens[1:], states[1:, :25])
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a[1:], short, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 7, 300])
@pytest.mark.parametrize("kind", ["all", "masked", "causal"])
def test_plain_attention_is_torchs_own(queries, kind):
    causal = kind == "causal"
    keys = queries if causal else 40
    q, (k, v) = torch.randn(2, 3, queries, 16), torch.randn(2, 2, 3, keys, 16)
    mask = torch.rand(2, 1, 1, keys) < 0.7 if kind == "masked" else None
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal
    )
    ours = forward._plain_attention(q, k, v, mask, causal)
    torch.testing.assert_close(ours, expected)


# -- students -----------------------------------------------------------------------


def test_a_student_shares_the_encoder_and_keeps_first_and_last(random):
    student = whisper.student(random)
    assert student.layers == (2, 2)
    theirs, ours = random.model.model, student.model.model
    pairs = zip(theirs.encoder.parameters(), ours.encoder.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert ours.decoder.embed_tokens.weight is theirs.decoder.embed_tokens.weight
    for kept, layer in zip((0, 2), ours.decoder.layers, strict=True):
        whole = theirs.decoder.layers[kept]
        pairs = zip(whole.parameters(), layer.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    trainable = {n for n, p in student.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".decoder.layer" in name for name in trainable)
    assert not any(p.requires_grad for p in random.model.parameters())
    assert len(random.model.model.decoder.layers) == 3


def test_a_student_runs_in_transformers_too(random):
    student = whisper.student(random, layers=[2])
    mel = forward.log_mel(random, [sound()], seconds=2.0)
    tokens = torch.tensor([[50257, 50362, 11, 12]])
    with torch.inference_mode():
        theirs = student.model(input_features=mel, decoder_input_ids=tokens).logits
        states = forward.encode(student.model.model.encoder, mel)
        hidden = forward.decode(student.model.model.decoder, tokens, states)
        ours = forward.project(student.model.model.decoder, hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    student.model.generate(mel, max_new_tokens=3)  # its cache knows where to look


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 7]])
def test_layers_that_are_not_there_are_refused(random, layers):
    with pytest.raises(MicrobudgetError, match="layers 0 to 2"):
        whisper.student(random, layers)
