"""Data sets that TensorFlow Datasets has prepared as array_record, read from their files without TensorFlow."""

from collections.abc import Sequence

from transformers_jax.errors import UserError


def open_prepared(config, split: str, package: str, example: str, *, undecoded: bool = False) -> tuple[Sequence[dict], dict]:
    """The examples of config.data.tfds_name, and its features by name; its builder need not be imported.

    Args:
      config: config.data with tfds_name, data_dir, and the split's name there where it is not the key's own.
      package: where TFDS defines such data sets, for the command that prepares them.
      example: a name, for who has given none.
      undecoded: whether images are given as their files' bytes.

    Raises:
      UserError: no name, or nothing prepared under it; says how to.
    """
    name, folder = config.tfds_name, config.data_dir or None
    if not name:
        raise UserError(f"config.data.tfds_name is empty; give one, as in {example}")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    where = f", data_dir={folder!r}" if folder else ""
    command = (
        f'python -c "import tensorflow_datasets as tfds, {package}; '
        f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as e:
        at = f"config.data.data_dir={folder}" if folder else "~/tensorflow_datasets (config.data.data_dir is empty)"
        raise UserError(f"config.data.tfds_name={name} is not prepared in {at}; prepare it once: {command}") from e
    features, decoders = builder.info.features, None
    if undecoded:
        images = [name for name in features if isinstance(features[name], tfds.features.Image)]
        decoders = {name: tfds.decode.SkipDecoding() for name in images}
    try:
        data = builder.as_data_source(split=config.get(split) or split, decoders=decoders)
    except NotImplementedError as e:
        raise UserError(f"{builder.data_dir} is not array_record; remove it and prepare it again: {command}") from e
    except ValueError as e:  # an unknown split, or a slice that is empty
        raise UserError(f"config.data.{split}: {name}: {e}") from e
    return data, features
