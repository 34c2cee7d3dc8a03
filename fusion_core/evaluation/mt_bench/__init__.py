"""MT-Bench as FastChat's ``llm_judge`` defines it (Zheng et al. 2023, arXiv 2306.05685)."""

from fusion_core.evaluation.mt_bench.answers import Answer, answer_questions, read_answers, write_answers
from fusion_core.evaluation.mt_bench.data import MtBench, Question, load_mt_bench
from fusion_core.evaluation.mt_bench.pairwise import judge_pairs
from fusion_core.evaluation.mt_bench.scores import score_pairs, score_ratings
from fusion_core.evaluation.mt_bench.single import judge_answers, read_judgments

__all__ = [
    "Answer",
    "MtBench",
    "Question",
    "answer_questions",
    "judge_answers",
    "judge_pairs",
    "load_mt_bench",
    "read_answers",
    "read_judgments",
    "score_pairs",
    "score_ratings",
    "write_answers",
]
