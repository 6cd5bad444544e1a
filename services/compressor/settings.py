"""The compressor's settings, from TENTH_COMPRESSOR_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CompressorSettings(BaseSettings):
    """Which tokenizers, and how far each mode goes."""

    model_config = SettingsConfigDict(env_prefix="TENTH_COMPRESSOR_", frozen=True, extra="ignore")

    catalog_file: Path = Field(
        default=Path("deploy/catalog.yaml"), description="YAML of models: tokenizers, windows, prices, caches"
    )
    catalog_check_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks at the catalogue file for changes, seconds"
    )
    models_dir: Path = Field(default=Path(".models"), description="Directory of model folders, for their tokenizers")
    cache_address: str = Field(default="127.0.0.1:7101", description="host:port of cache, for embeddings")
    embed_timeout_seconds: float = Field(
        default=0.25, gt=0, le=10, description="Longest wait for embeddings before BM25 ranks, seconds, above 0 to 10"
    )
    embed_pause_seconds: float = Field(
        default=2.0, ge=0, description="Time without asking for embeddings after a failure, seconds"
    )
    embedding_cache_entries: int = Field(default=20_000, ge=0, description="Chunk vectors kept in memory")
    embed_most_new: int = Field(
        default=8,
        ge=0,
        description="Most texts not seen before that are embedded for one request; chunks beyond rank by words",
    )
    chunk_cache_mebibytes: int = Field(
        default=64, ge=0, description="Chunks kept split and counted, MiB of memory; 0 keeps none"
    )
    corrections_file: Path | None = Field(
        default=None, description="JSON in which learned token corrections are kept; none: learned anew by each process"
    )
    token_cache_mebibytes: int = Field(
        default=64, ge=0, description="Texts kept with their token counts, MiB of text; 0 keeps none"
    )
    prefix_cache_entries: int = Field(
        default=200_000, ge=0, description="Starts of prompts remembered by digest, as asked and as sent; 0: none"
    )
    tools: bool = Field(
        default=False, description="Whether tools that a turn has no use for are left out, in every mode but off"
    )
    output: bool = Field(
        default=False, description="Whether answers get a limit and a hint to be brief from their predicted length"
    )
    thread_bytes: int = Field(
        default=50_000, ge=0, description="Prompts of more bytes are worked on in a thread, beside other requests"
    )
    balanced_history_tokens: int = Field(
        default=8_000, ge=1, description="Tokens of messages kept in mode balanced, system messages included"
    )
    aggressive_history_tokens: int = Field(
        default=3_000, ge=1, description="Tokens of messages kept in mode aggressive, system messages included"
    )
    summary: bool = Field(
        default=False, description="Whether old turns of long talks are told in a summary, in every mode but off"
    )
    summary_model: str = Field(default="", description="Catalogue model that makes summaries; empty: none are made")
    inference_address: str = Field(
        default="", description="host:port of inference, for summaries and tokenwise; empty: neither"
    )
    summary_wait_seconds: float = Field(
        default=3.0,
        ge=0,
        le=60,
        description="Longest wait for a summary, and never over half of the time left; later ones serve the next turn",
    )
    summary_timeout_seconds: float = Field(
        default=20.0, gt=0, le=300, description="Deadline of the summarising model's call, seconds"
    )
    summary_pause_seconds: float = Field(
        default=60.0, ge=0, description="Time before a summary whose model failed is tried again, seconds"
    )
    summary_cache_mebibytes: int = Field(default=32, ge=1, description="Summaries kept, MiB of text")
    summary_keep_turns: int = Field(default=4, ge=1, description="Newest turns that no summary covers")
    summary_step_turns: int = Field(default=4, ge=1, description="Turns by which a summary grows")
    summary_most_output_tokens: int = Field(default=300, ge=50, le=4000, description="Longest summary, tokens")
    tokenwise_model: str = Field(
        default="smollm2-135m",
        description="Catalogue model of a vllm provider that scores texts for tokenwise; empty: no tokenwise",
    )
    tokenwise_timeout_seconds: float = Field(
        default=60.0, gt=0, le=600, description="Deadline of one call of the scoring model, seconds"
    )
    tokenwise_window_characters: int = Field(
        default=4_000,
        ge=500,
        le=100_000,
        description="Text scored in one call, characters, a quarter of it context; halved where a model holds less",
    )
