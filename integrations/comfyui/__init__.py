"""DynaDrag in ComfyUI: load a model, see where a drag would lead, and make the edit."""

from .nodes import DynaDragEdit, DynaDragLoader, DynaDragPreview

NODE_CLASS_MAPPINGS = {
    "DynaDragLoader": DynaDragLoader,
    "DynaDragPreview": DynaDragPreview,
    "DynaDragEdit": DynaDragEdit,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DynaDragLoader": "Load DynaDrag Model",
    "DynaDragPreview": "DynaDrag Preview (not the edit)",
    "DynaDragEdit": "DynaDrag Edit",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
