"""The other side of checks/hf: loads each checkpoint under a folder with transformers and repeats the logits that Heddle wrote beside it."""
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file

BOUND = 1e-4  # of the largest |logit|, in f32


def check(directory):
    want = load_file(directory / "heddle.safetensors")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32, output_loading_info=True)
    transformers.GenerationConfig.from_pretrained(directory)
    with torch.no_grad():
        got = model.eval()(want["tokens"].long()[None]).logits[0]
    difference = ((got - want["logits"]).abs().max() / want["logits"].abs().max()).item()
    complaints = {k: v for k, v in info.items() if v}
    passed = difference <= BOUND and not complaints and bool(torch.isfinite(got).all())
    what = f"{directory.name} ({type(model).__name__}): max |difference| / max |logit|"
    print(f"  {what:<64} {difference:<11.3g} <= {BOUND:<9.3g} {'PASS' if passed else 'FAIL'}", *complaints.items())
    return passed


transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
print(f"  torch {torch.__version__}, transformers {transformers.__version__}")
results = [check(d) for d in sorted(pathlib.Path(sys.argv[1]).iterdir())]
sys.exit(not results or not all(results))
