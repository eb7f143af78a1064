"""What training adds to either of transformers' LLaVA models: a tower's outputs in place of pixels, and a
loss whose logits are made at the supervised positions alone.

Letters: M views of a batch's pictures (in LLaVA-1.5 the pictures themselves), N tokens of each.
"""

from typing import ClassVar, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from llava_bridge.attention import run_beginning, shared_length
from llava_bridge.labels import IGNORE
from llava_bridge.loss import summed_loss
from llava_bridge.packing import PER_SAMPLE, sample_lengths


class OverTokens:
    """LLaVA that also takes `image_tokens`, cached tower outputs, and runs the projector on them live.

    A forward argument, not a call around the model, so that DeepSpeed and DDP see one graph. Of a batch
    without a picture placeholder no token of its pictures is taken, but from the same graph, as in LLaVA:
    every process of a run goes forward and backward through the same layers, gathers the same weights and
    reduces the same gradients.
    """

    plain: ClassVar[type[PreTrainedModel]]  # transformers' own class, as which the model is saved
    shares_beginnings = False  # in training, words that all rows begin with are run once

    @classmethod
    def adopt(cls, model: PreTrainedModel) -> Self:
        """The same model, under this class. (Its own `from_pretrained` would not know LLaVA's key names on
        disk.)"""
        model.__class__ = cls
        return model

    def sequences(self, features: Tensor, image_sizes: Tensor | None) -> list[Tensor]:
        """Projected tokens (M N D_llm) as each picture's own sequence: here a picture is one view."""
        return list(features)

    def no_sequence(self, features: Tensor) -> Tensor:
        """No token (0 D_llm), with a gradient of zero to everything that makes sequences."""
        return features[0, :0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_tokens: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ):
        """image_tokens: M N D, the views of the batch's pictures in order; image_sizes: (height, width) px of
        each picture, where a picture has several views; the rest as the parent's.

        In training the language model's head sees the supervised positions alone: the same loss, and logits
        for a tenth of the tokens instead of all.
        """
        if image_tokens is None and pixel_values is not None and self.training:
            image_tokens, pixel_values = self.model.vision_tower(pixel_values).last_hidden_state, None
        if image_tokens is not None:
            projector = self.model.multi_modal_projector
            features = projector(image_tokens.to(projector.linear_1.weight.dtype))  # M N D_llm
            has_pictures = (input_ids == self.config.image_token_index).any()
            sequences = (
                self.sequences(features, image_sizes) if has_pictures else [self.no_sequence(features)]
            )
            mm_encoder_outputs = {"image": BaseModelOutputWithPooling(pooler_output=sequences)}
        if self.training and labels is not None:
            return self._supervise(input_ids, mm_encoder_outputs, labels, **kwargs)
        sizes = {} if image_tokens is not None or image_sizes is None else {"image_sizes": image_sizes}
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            mm_encoder_outputs=mm_encoder_outputs,
            labels=labels,
            **sizes,
            **kwargs,
        )

    def _supervise(
        self,
        input_ids: Tensor,
        mm_encoder_outputs: dict | None,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        has_own_rows = "position_ids" not in kwargs  # not packed
        if has_own_rows and attention_mask is not None and attention_mask[:, 0].all():
            attention_mask = None  # padding on the right, which no token before it sees
        can_share = self.shares_beginnings and has_own_rows and attention_mask is None
        if can_share and (length := shared_length(input_ids, labels, self.config.image_token_index)):
            kwargs["past_key_values"] = run_beginning(self, input_ids[0, :length], len(input_ids))
            input_ids, labels = input_ids[:, length:], labels[:, length:]
        is_per_sample = self.config.text_config._attn_implementation == PER_SAMPLE
        if is_per_sample and "position_ids" in kwargs:
            kwargs["sample_lengths"] = sample_lengths(kwargs["position_ids"])
        hidden = self.model(
            input_ids=input_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            attention_mask=attention_mask,
            use_cache="past_key_values" in kwargs,
            **kwargs,
        ).last_hidden_state  # B L D_llm
        is_next_supervised = labels[:, 1:] != IGNORE
        targets = labels[:, 1:][is_next_supervised]
        total = summed_loss(self.lm_head, hidden[:, :-1][is_next_supervised], targets)
        # at least 1: every picture of a micro-batch may be broken, which leaves no label
        return LlavaCausalLMOutputWithPast(loss=total / (num_items_in_batch or max(1, len(targets))))
