"""Runs llama.cpp's convert_hf_to_gguf.py, as a program of its own: LLAMA_CPP SOURCE TARGET OUTTYPE [PRE].

PRE replaces the converter's guess of the pre-tokenizer, a hash of one text's token ids under a known vocabulary: a
tiny vocabulary is in no table of hashes. Everything else is the converter's own.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    llama_cpp, source, target, outtype, *pre = sys.argv[1:]
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    from conversion.base import TextModel

    if pre:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre[0]
    sys.argv = ["convert_hf_to_gguf.py", source, "--outfile", target, "--outtype", outtype]
    runpy.run_path(str(Path(llama_cpp) / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
