"""Say how far a student's distribution is from a teacher's, and which way its logits should go.

Axes in names: n positions, d d_model, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lathe.model.linear import multiply


@dataclass(frozen=True, slots=True)
class Lesson:
    """Hold a teacher's final hidden states and head, of any width, and how its softened distribution counts.

    `weight` is its share of the loss, from 0 to 1. Its logits are made a chunk at a time, as the student's are.
    """

    x_nd: Tensor
    weight_vd: Tensor
    temperature: float
    weight: float

    def compare(self, rows: slice, log_probs_nv: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the teacher with a student's log-probabilities (fp32) at some positions.

        Gives each one's KL(teacher ‖ student) at the temperature T, in nats, and its gradient in the student's logits,
        (student - teacher) / T: Hinton et al. 2015, arXiv:1503.02531, eq. 2. The student's are left as they are.
        """
        logits_nv = multiply(self.x_nd[rows], self.weight_vd).float()
        wanted_nv = logits_nv.div_(self.temperature).log_softmax(dim=1)
        del logits_nv
        # a softmax does not feel the log-partition by which log-probabilities and logits differ
        found_nv = (log_probs_nv / self.temperature).log_softmax(dim=1)
        teacher_nv = wanted_nv.exp()
        apart_n = wanted_nv.sub_(found_nv).mul_(teacher_nv).sum(dim=1)
        return apart_n, found_nv.exp_().sub_(teacher_nv).div_(self.temperature)
