"""The verb with real captioners, pipelines and CLIP, tiny and random."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.generate import _models, main

pytestmark = pytest.mark.slow

open_clip = pytest.importorskip("open_clip")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[BOS]",
    "[EOS]",
    "a",
    "an",
    "the",
    "dog",
    "cat",
    "rock",
    "man",
    "on",
    "grass",
    "two",
    "near",
]
TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SEEN = {"image_size": 16, "patch_size": 8}
SAID = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def tokenizer():
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=16, **special
    )


def save_captioner(folder: Path) -> None:
    said = {
        **TINY,
        **SAID,
        "encoder_hidden_size": 16,
        "sep_token_id": 3,
        "max_position_embeddings": 64,
    }
    config = transformers.BlipConfig(text_config=said, vision_config={**TINY, **SEEN})
    model = transformers.BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.decoder.bias.data[
        :4
    ] = -99  # random weights would end a caption in 15 before it begins
    model.save_pretrained(folder)
    pixels = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    transformers.BlipProcessor(pixels, tokenizer()).save_pretrained(folder)


def save_painter(folder: Path, checker: bool = False) -> None:
    """Stable Diffusion; with a safety checker that finds fault with every picture."""
    text = transformers.CLIPTextConfig(
        **TINY, **SAID, max_position_embeddings=16, projection_dim=16
    )
    blocks = {"norm_num_groups": 4, "layers_per_block": 1}
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=4,
        **blocks,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **blocks,
    )
    safety = features = None
    if checker:
        config = transformers.CLIPConfig(
            text_config={**TINY, **SAID}, vision_config={**TINY, **SEEN}, projection_dim=16
        )
        safety = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config)
        safety.concept_embeds_weights.data.fill_(-10)
        features = transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            num_train_timesteps=10, steps_offset=1, clip_sample=False
        ),
        safety_checker=safety,
        feature_extractor=features,
        requires_safety_checker=checker,
    ).save_pretrained(folder)


def save_clip(folder: Path, pickled: bool = False) -> None:
    seen = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    said = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": seen, "text_cfg": said}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = open_clip.CLIP(**config).state_dict()
    if pickled:
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    else:
        pytest.importorskip("safetensors.torch").save_file(
            weights, folder / "open_clip_model.safetensors"
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_captioner(folder / "blip")
        save_painter(folder / "diffusion")
        save_clip(folder / "clip")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def run(models: Path, out: Path, *words: object, **changed: object) -> Path:
    settings = {
        "captioner": models / "blip",
        "painter": models / "diffusion",
        "clip": models / "clip",
        "out": out,
    }
    settings |= {
        "classes": "dog,cat,person",
        "pictures": 3,
        "keep": 1,
        "steps": 2,
        "batch": 2,
        "device": "cpu",
        **changed,
    }
    return main([*map(str, words), *[f"--{name}={value}" for name, value in settings.items()]])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".sqlite"
    }


@pytest.fixture
def start(images: Path, tmp_path: Path) -> dict[str, tuple[str, Path]]:
    """What each part can be started with alone, or with those before it."""
    (tmp_path / "captions.txt").write_text("the grass\n")
    return {
        "captioner": ("--images", images),
        "painter": ("--captions", tmp_path / "captions.txt"),
        "clip": ("--images-from", images),
    }


def refused(capsys, *args: object, **changed: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*args, **changed)
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said.rstrip().endswith(lines[0])
    return lines[0]


def test_images_become_backgrounds(models, images, tmp_path, capsys):
    written = run(models, tmp_path / "out", "--images", images)
    content = json.loads(written.read_text())
    assert len(content["pictures"]) == 2 * 2 * 3
    assert sum(picture["kept"] for picture in content["pictures"]) == 2 * 2
    assert content["captioner"] == {"model": str(models / "blip"), "captions": 2}
    assert len({picture["original_caption"] for picture in content["pictures"]}) > 1
    for picture in content["pictures"]:
        assert not set(picture["caption"].split()) & {"dog", "cat", "man"}
        assert picture["original_caption"]
        assert all(
            -1 <= picture[which] <= 1 for which in ("class_similarity", "caption_similarity")
        )
        assert Image.open(tmp_path / "out" / picture["file"]).size == (8, 8)
    said = capsys.readouterr()
    assert f"4 backgrounds: {tmp_path / 'out/backgrounds'}, {written}" in said.out
    assert "warning" not in said.err.lower()

    run(models, tmp_path / "again", "--images", images)
    assert files(tmp_path / "again") == files(tmp_path / "out")
    run(models, tmp_path / "other", "--images", images, seed_everything=1)
    assert not set(files(tmp_path / "other/backgrounds")) & set(files(tmp_path / "out/backgrounds"))


def test_a_data_set_names_the_classes(models, tmp_path):
    data = [
        "--data",
        "shapes",
        "--data.root",
        tmp_path,
        "--data.train",
        12,
        "--data.val",
        1,
        "--data.salient",
        1,
    ]
    content = json.loads(run(models, tmp_path / "out", *data, classes="", limit=2).read_text())
    assert "red-striped egg" in content["classes"]
    assert len({picture["source"] for picture in content["pictures"]}) == 2


def test_captions_from_a_file_and_no_clip(models, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("two dogs near a man\n\nthe grass\n")
    settings = {"captioner": "nowhere", "clip": "none", "size": 16}
    content = json.loads(
        run(
            models, tmp_path / "out", "--captions", tmp_path / "captions.txt", **settings
        ).read_text()
    )
    assert [p["source"] for p in content["pictures"]] == ["line 1"] * 3 + ["line 3"] * 3
    assert all(picture["kept"] for picture in content["pictures"])
    assert content["pictures"][5]["caption"] == "the grass"
    assert Image.open(tmp_path / "out" / content["pictures"][0]["file"]).size == (16, 16)
    assert (content["captions"], content["clip"]) == (str(tmp_path / "captions.txt"), None)
    assert "captioner" not in content
    (tmp_path / "captions.txt").write_text("\n")
    assert "has no caption" in refused(
        capsys, models, tmp_path / "o", "--captions", tmp_path / "captions.txt"
    )


def test_pictures_from_a_folder_need_clip_alone(models, images, tmp_path, capsys):
    settings = {"captioner": "nowhere", "painter": "nowhere", "pictures": 2}
    content = json.loads(
        run(models, tmp_path / "out", "--images-from", images, **settings).read_text()
    )
    assert content["images_from"] == str(images)
    nearer, farther = sorted(content["pictures"], key=lambda picture: picture["class_similarity"])
    assert (nearer["kept"], farther["kept"]) == (True, False)
    assert [Path(file).read_bytes() for file in (tmp_path / "out/backgrounds").iterdir()] == [
        Path(nearer["file"]).read_bytes()
    ]
    for source in (
        "--images-from",
        "--images",
    ):  # else what is made would be read when the command is repeated
        assert "choose another folder" in refused(capsys, models, images / "out", source, images)


def test_similarity_is_open_clips_own(models, images):
    from wsis.generate.similarity import Clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{models / 'clip'}")
    pictures = [Image.open(path) for path in sorted(images.iterdir())]
    words = ["a photo of a dog", "grass"]
    with torch.no_grad():
        said = open_clip.get_tokenizer(f"local-dir:{models / 'clip'}")(words)
        wanted = [
            [
                float(
                    torch.cosine_similarity(
                        model.encode_image(prepare(p)[None]), model.encode_text(s[None])
                    )
                )
                for s in said
            ]
            for p in pictures
        ]
    torch.testing.assert_close(
        Clip(str(models / "clip"), "cpu")(pictures, words), torch.tensor(wanted)
    )


def test_captions_leave_the_random_state_alone(models, images):
    from wsis.generate.captions import Captioner

    captioner, image = Captioner(str(models / "blip"), 3, "cpu"), Image.open(images / "0.png")
    first = captioner(image, 1)
    state = torch.get_rng_state()
    assert captioner(image, 1) == first
    assert captioner(image, 2) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_the_safety_checkers_black_pictures_are_left_out(models, start, tmp_path, capsys):
    save_painter(tmp_path / "strict", checker=True)
    line = refused(capsys, models, tmp_path / "out", *start["painter"], painter=tmp_path / "strict")
    assert "nothing was generated" in line


@pytest.mark.parametrize("part", ["captioner", "painter", "clip"])
@pytest.mark.parametrize("named", ["hub/model", "no model", "pickled"])
def test_a_model_that_cannot_be_loaded_is_one_line(
    part, named, models, start, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "model"
    if named == "pickled":
        {
            "captioner": save_captioner,
            "painter": save_painter,
            "clip": lambda to: save_clip(to, pickled=True),
        }[part](folder)
        for path in list(folder.rglob("*.safetensors")):
            torch.save({}, path.with_name("pytorch_model.bin"))
            path.unlink()
    else:
        folder.mkdir()
    name = "hub/model" if named == "hub/model" else str(folder)
    line = refused(capsys, models, tmp_path / "out", *start[part], **{part: name})
    assert f"--{part} {name}" in line
    assert "safetensors" in line
    assert not (tmp_path / "out/generated.json").exists()


@pytest.mark.parametrize(
    ("part", "package"),
    [("captioner", "transformers"), ("painter", "diffusers"), ("clip", "open_clip")],
)
def test_without_the_extra_a_line_names_it(
    part, package, models, start, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, models, tmp_path / "out", *start[part])
    assert line == f'error: wsis.generate needs {package}: pip install "wsis[generate]"'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "IMAGES", "--captions", "x.txt"], "--images and --captions: give one"),
        (["--images", "IMAGES", "--classes", ""], "give --classes"),
        (["--images", "IMAGES", "--classes", ", ,"], "names no class"),
        (["--images", "IMAGES", "--keep", "4"], "--keep 4"),
        (["--images", "IMAGES", "--size", "15"], "--size 15"),
        (["--images", "IMAGES", "--limit", "0"], "--limit 0"),
        (["--images", "IMAGES", "--device", "moon"], "--device moon"),
        (["--images", "nowhere"], "no images in nowhere"),
        (["--captions", "nowhere.txt"], "nowhere.txt"),
        (["--images", "IMAGES", "--precision", "int8"], "precision"),
    ],
)
def test_wrong_settings(words, said, models, images, tmp_path, capsys):
    words = [str(images) if word == "IMAGES" else word for word in words]
    given = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
    assert said in refused(capsys, models, tmp_path / "out", **given)


def test_help_says_something_of_each_setting(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 80
    assert any("--painter" in line and "pipeline of diffusers" in line for line in lines)
    assert all(len(line.split()) > 3 for line in lines if line.startswith("  --"))


def test_clip_alone_needs_none_of_the_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    transformers.utils.logging.set_verbosity_info()
    _models.quiet()
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
