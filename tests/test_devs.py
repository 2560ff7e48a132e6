"""Train every family and component 20 steps, whole and killed, and write digests: LOOP_OUT=file.json pytest tests/test_reference.py"""

from __future__ import annotations
import hashlib, json, os
from pathlib import Path
import pytest, torch
from soundmill import params
from tests.stages import of_waves
from tests.stages import test_autoencoder_latents as ael, test_beside as beside, test_diffusion_ae as dae, test_diffwave as dw
from tests.stages import (
    test_projected_gan as pg,
    test_rave as rv,
    test_tango as tg,
    test_train_generate as ddpm,
    test_vocoder as vo,
    test_waveform_unet as wu,
)
from tests.stages.test_train_generate import data as ddpm_data, composed as composed  # noqa
from tests.stages.test_tango import data as tango_data  # noqa
from tests.stages.test_vocoder import data as vocoder_data  # noqa
from tests.stages.test_waveform_unet import data as unet_data  # noqa
from tests.stages.test_diffusion_ae import data as dae_data  # noqa
from tests.stages.test_diffwave import data as dw_data  # noqa
from tests.stages.test_projected_gan import data as pg_data  # noqa
from tests.stages.test_rave import data as rave_data  # noqa
from tests.stages.test_beside import data as beside_data  # noqa
from tests.stages.test_autoencoder_latents import project as ael_project  # noqa

STEPS, KILL = 8, 11
D = int(os.environ["LOOP_DEVICES"])
OUT = Path(os.environ["LOOP_OUT"])


def sha(tensor):
    tensor = tensor.detach().cpu().contiguous()
    return hashlib.sha256(
        str((tensor.dtype, list(tensor.shape))).encode() + tensor.view(torch.uint8).numpy().tobytes()
        if tensor.ndim
        else str(tensor.item()).encode()
    ).hexdigest()[:16]


def plain(value):
    if isinstance(value, torch.Tensor):
        return sha(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def optimisers(states):
    return [
        {"state": plain(s["state"]), "lr": [g["lr"] for g in s["param_groups"]], "params": [g["params"] for g in s["param_groups"]]}
        for s in states
    ]


def normalise(c):
    if "optimizer_states" in c:  # Lightning
        call = list(c["callbacks"].values())
        curve = next(s for s in call if "losses" in s)
        held = next((s for s in call if "weights" in s), None)
        return {
            "weights": plain(dict(c["state_dict"])),
            "ema": plain(c["ema"]),
            "optimisers": optimisers(c["optimizer_states"]),
            "curve": curve["points"],
            "held_out": held and plain(held),
        }
    held = c["validation"]
    return {
        "weights": plain(dict(c["module"])),
        "ema": plain(c["ema"]),
        "optimisers": optimisers(c["optimisers"]),
        "curve": c["curve"]["points"],
        "held_out": held and plain({k: held[k] for k in ("points", "loss", "step", "weights")}),
    }


class Killed(BaseException):
    pass


def die_at(patch, step):
    try:
        from soundmill.training import callbacks
    except ImportError:
        callbacks = None
    if callbacks:

        def die(self, trainer, module, outputs, batch, batch_idx):
            if batch.step == step:
                raise Killed

        patch.setattr(callbacks.Progress, "on_train_batch_end", die)
    else:
        from tests.training.killing import die_before, Killed as K2

        die_before(patch, step)


def files(home):
    found = {}
    for path in sorted(home.rglob("*")):
        if (
            path.is_file()
            and (
                path.suffix == ".safetensors"
                or path.name in ("curve.csv", "ae.csv", "c.csv", "train.json", "ae.json", "a.json", "metrics.json", "grid.png")
            )
            and ".work" not in path.parts
        ):
            found[str(path.relative_to(home))] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


@pytest.fixture
def record(monkeypatch, request, capfd):
    last = {}
    save = torch.save

    def saved(obj, f, *a, **k):
        if isinstance(obj, dict) and "ema" in obj:
            last["c"] = normalise(obj)
        return save(obj, f, *a, **k)

    monkeypatch.setattr(torch, "save", saved)

    def both(run, home, batches=1):
        """run(directory)"""
        import stages.train

        run(home)
        known = json.loads(OUT.read_text()) if OUT.exists() else {}
        known[request.node.name] = last.pop("c")
        OUT.write_text(json.dumps(known, indent=1, sort_keys=True))

    return both


S = {"steps": STEPS, "checkpoint_seconds": 0.0, "log_every_steps": 1}


def with_steps(document, family, **more):
    document = json.loads(json.dumps(document))
    document[family]["train"] |= S | {"validate_every_steps": 4} | more
    document[family]["train"]["hardware"]["devices"] = D
    return document


def test_ddpm_mel(record, tmp_path, ddpm_data, composed):
    doc = with_steps(composed, "ddpm_mel", samples_every_steps=5)
    doc["execution"]["workers"] = 1

    def run(home):
        params.write_yaml(doc, home / "params.yaml")
        ddpm._train(home, ddpm_data)

    record(run, tmp_path)


def test_tango(record, tmp_path, tango_data):
    doc = params.compose(tg.ROOT / "conf", tg.SHRUNK)
    doc["tango"]["train"]["hardware"]["devices"] = D
    record(
        lambda home: tg.train(
            home,
            tango_data,
            doc,
            **S,
            validate_every_steps=4,
            real_items=2 // D,
            mixed_items=0 if 0 else doc["tango"]["train"]["mixed_items"],
        ),
        tmp_path,
        2,
    )


@pytest.mark.parametrize("condition", ["mel", "label", "none"])
def test_diffwave(record, tmp_path, dw_data, condition):
    record(lambda home: dw.train(home, dw_data, with_steps(dw.composed(condition), "diffwave")), tmp_path)


@pytest.mark.parametrize(("condition", "accumulate"), [("caption", 2), ("label", 1)])
def test_waveform_unet(record, tmp_path, unet_data, condition, accumulate):
    doc = with_steps(wu.composed(condition), "waveform_unet", accumulate=accumulate, samples_every_steps=7)
    record(lambda home: wu.train(home, unet_data, doc, parts="parts"), tmp_path, accumulate)


def test_diffusion_ae(record, tmp_path, dae_data):
    record(lambda home: dae.train(home, dae_data, with_steps(dae.composed(), "diffusion_ae")), tmp_path)


@pytest.mark.parametrize("family", ["diffusion_vocoder", "upsampler"])
def test_beside(record, tmp_path, beside_data, family):
    record(lambda home: of_waves.train(family, home, beside_data, with_steps(beside.composed(family), family)), tmp_path)


def test_rave(record, tmp_path, rave_data):
    record(lambda home: of_waves.train("rave", home, rave_data, with_steps(rv.composed(), "rave"), **rv.WHERE), tmp_path)


@pytest.mark.parametrize("names", ["[random,tagger]", "[none]"])
def test_projected_gan(record, tmp_path, pg_data, names):
    doc = with_steps(
        pg.composed(f"projected_gan.train.discriminators.projectors={names}", "projected_gan.train.conditional=true"),
        "projected_gan",
    )
    record(lambda home: pg.train(home, pg_data, doc, inputs="mels", parts="mels", tagger="tagger"), tmp_path)


@pytest.mark.parametrize("kind", vo.NETWORKS)
def test_vocoder(record, tmp_path, vocoder_data, root, monkeypatch, kind):
    monkeypatch.chdir(root)
    record(
        lambda home: vo.make(
            home,
            vocoder_data,
            root,
            STEPS,
            checkpoint_seconds=0.0,
            kind=kind,
            more=["vocoder.weights.validate_every_steps=4", "vocoder.weights.log_every_steps=1", f"vocoder.hardware.devices={D}"],
        ),
        tmp_path,
    )


def test_mel_autoencoder(record, tmp_path, ael_project):
    import shutil

    def run(home):
        (home / "data").exists() or shutil.copytree(ael_project / "data", home / "data")
        ael.make_autoencoder(
            home,
            "made",
            hardware=ael.PARAMETERS["hardware"] | {"devices": D},
            weights=ael.PARAMETERS["weights"] | S | {"validate_every_steps": 4},
        )

    record(run, tmp_path / "here") if (tmp_path / "here").mkdir() is None else 0


def test_unet1d_codec(record, tmp_path):
    def run(home):
        (home / "clips").exists() or of_waves.write(home, channels=2)
        dae.make_autoencoder(
            home,
            dae.composed(
                f"diffusion_ae.autoencoder.weights.steps={STEPS}",
                f"diffusion_ae.autoencoder.hardware.devices={D}",
                "diffusion_ae.autoencoder.weights.validate_every_steps=4",
            ),
        )

    record(run, tmp_path)


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_rave_codec(record, tmp_path, version):
    more = rv.V1 if version == "v1" else []

    def run(home):
        (home / "clips").exists() or of_waves.write(home)
        rv.make_codec(
            home,
            rv.composed(
                *more,
                f"rave.autoencoder.weights.steps={STEPS}",
                f"rave.autoencoder.hardware.devices={D}",
                "rave.autoencoder.weights.phase_1_steps=4",
                "rave.autoencoder.weights.validate_every_steps=4",
            ),
        )

    record(run, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def seeded():
    torch.manual_seed(0)
