"""What a model or a pipeline takes along when it is saved: its code, and on the Hub a card."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers.utils import PushToHubMixin
from huggingface_hub import ModelCard, ModelCardData, file_exists

from .atomic_file import atomic_file
from .remote_code import self_contained

CARD_FILE = "README.md"
REMOTE_CODE = "diffusers_modules"
"""The package under which diffusers runs code that came with weights."""


class TravellingMixin(PushToHubMixin):
    """For models and pipelines of diffusers: their code is saved with their config, and a card is pushed with them.

    The code is one file, put together from the installed package; where the class itself came from such a file, that
    file is passed on. So what was loaded from anywhere can be saved, and loads where this package is not installed.
    """

    _travels_as: ClassVar[str]
    """Name of the file of code, without its suffix; set in the class whose module travels."""

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the config, and the code beside it."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(save_directory) / f"{self._travels_as}.py") as file:
            file.write(self.travelling_code().encode())
        super().save_config(save_directory, *args, **kwargs)

    @classmethod
    def travelling_code(cls) -> str:
        """Source of a file that holds this class and all that it needs of this project."""
        home = next(owner for owner in cls.__mro__ if "_travels_as" in vars(owner)).__module__
        if home.split(".")[0] == REMOTE_CODE:
            return Path(str(sys.modules[home].__file__)).read_text(encoding="utf-8")
        return self_contained(home)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read the config, without what is there for `AutoModel` alone: it would be warned of as unknown."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.pop("auto_map", None)
        return loaded

    def model_card(
        self,
        repo_id: str,
        license: str | None = None,
        base_model: str | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> ModelCard:
        """The card of a repository that holds this; `push_to_hub` writes one where there is none.

        Args:
            repo_id (`str`): name of the repository, for the examples.
            license (`str`, *optional*): of the weights, such as `"apache-2.0"`.
            base_model (`str`, *optional*): repository that the weights derive from.
            figures (`Mapping[str, Any]`, *optional*): from what was measured to its value; they become a table.
        """
        data = ModelCardData(
            library_name="diffusers",
            pipeline_tag="image-to-image",
            tags=["dynadrag", "drag-editing", "image-editing"],
            license=license,
            base_model=base_model,
        )
        text = self._card_text(repo_id, license)
        if figures:
            rows = "\n".join(f"| {what} | {value} |" for what, value in figures.items())
            text = f"{text}\n## Figures\n\n| what | value |\n| --- | --- |\n{rows}\n"
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _card_text(self, repo_id: str, license: str | None) -> str:
        """Markdown of the card, without figures."""
        raise NotImplementedError

    def _upload_folder(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Put our card in the place of diffusers' empty one, unless the repository has a card already."""
        if kwargs.get("subfolder") is None and not file_exists(repo_id, CARD_FILE, token=kwargs.get("token")):
            self.model_card(repo_id).save(Path(working_dir) / CARD_FILE)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)
