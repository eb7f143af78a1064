"""A word-level tokenizer for the demo's small Llama: one token a word, so sequences are short and every
word is known.

Blanks separate words and are not tokens; a newline and each punctuation mark is a token of its own.
Decoding joins words with blanks and pulls punctuation to the word before it.
"""

from collections.abc import Iterable
from string import ascii_uppercase, digits, punctuation

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_bridge.prompt import IMAGE, SYSTEM

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
LMMS_SUFFIXES = (
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of `texts`, of the vicuna prompt and of lmms-eval's answer
    instructions."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t]+"), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    fixed = [SYSTEM, "USER ASSISTANT", *LMMS_SUFFIXES, "\n", *ascii_uppercase, *digits, *punctuation]
    texts = list(texts)
    texts += [text.capitalize() for text in texts]  # a word at the start of a sentence
    words = {word for text in (*fixed, *texts) for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {token: index for index, token in enumerate([PAD, UNK, BOS, EOS, IMAGE, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE],
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
