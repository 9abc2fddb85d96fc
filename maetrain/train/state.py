"""What a run carries from start to start beside its tensors: it stands in every checkpoint's manifest."""

from pydantic import BaseModel, ConfigDict, Field


class RunState(BaseModel):
    """Randomness is not in it: every draw comes from (seed, purpose, step or sample)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: int = Field(0, ge=0, description="0, or how often the run has gone back and on in another order of samples")
    went_back_at: int | None = Field(None, description="step at which it did, until a later one is committed")
    updates: int = Field(0, ge=0, description="steps that moved the weights")
    num_skipped: int = Field(0, ge=0, description="steps skipped for a non-finite loss or gradient")
    num_starts: int = Field(0, ge=0, description="starts of the training group")
    learning_rate: float = Field(0.0, description="of the last step done")
    tracker_run_id: str | None = Field(None, description="the run in the experiment tracker")
    forked_from: str | None = Field(None, description="checkpoint of another run that this one began with")
