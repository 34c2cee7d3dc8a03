"""A judge behind an OpenAI-compatible endpoint: asked concurrently, with retries, never paid twice for a judgment."""

from fusion_core.evaluation.judging.chat_client import ChatClient, Endpoint, Refusal, Reply
from fusion_core.evaluation.judging.judge import Judged, JudgeModel, JudgeSettings
from fusion_core.evaluation.judging.reply_log import ReplyLog

__all__ = ["ChatClient", "Endpoint", "JudgeModel", "JudgeSettings", "Judged", "Refusal", "Reply", "ReplyLog"]
