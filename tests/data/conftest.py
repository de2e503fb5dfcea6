"""Property tests here read files, which a busy machine may take a while for."""

from hypothesis import settings

settings.register_profile("files", deadline=None, max_examples=40)
settings.load_profile("files")
