"""Get Fashion-MNIST as the four unpacked files that mmpretrain reads.

Tried in this order: the target folder, the folder given with --source,
the folder of Debian's package, that package downloaded without installing it
(apt-get download), mmpretrain's own download.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = {
    'train-images-idx3-ubyte': 47040016,
    'train-labels-idx1-ubyte': 60008,
    't10k-images-idx3-ubyte': 7840016,
    't10k-labels-idx1-ubyte': 10008,
}
PACKAGE = 'dataset-fashion-mnist'
PACKAGE_FOLDER = 'usr/share/datasets/fashion-mnist'


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the four files at their sizes."""
    return all((folder / name).is_file()
               and (folder / name).stat().st_size == size
               for name, size in FILES.items())


def unpack(source: Path, target: Path) -> bool:
    """Copy the files, gzipped or not, from ``source``; False if not there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        packed, plain = source / f'{name}.gz', source / name
        if packed.is_file():
            with gzip.open(packed) as src, open(target / name, 'wb') as dst:
                shutil.copyfileobj(src, dst)
        elif plain.is_file():
            shutil.copyfile(plain, target / name)
        else:
            return False
    return is_complete(target)


def from_debian(target: Path) -> bool:
    """Download Debian's package, unpack it in a scratch folder, copy."""
    if not (shutil.which('apt-get') and shutil.which('dpkg-deb')):
        return False
    with tempfile.TemporaryDirectory() as folder:
        for command in (['apt-get', 'download', PACKAGE],
                        ['apt-get', 'update', '-q']):
            subprocess.run(command, cwd=folder, capture_output=True)
            if list(Path(folder).glob('*.deb')):
                break
        else:
            subprocess.run(['apt-get', 'download', PACKAGE],
                           cwd=folder,
                           capture_output=True)
        packages = list(Path(folder).glob('*.deb'))
        if not packages:
            return False
        subprocess.run(['dpkg-deb', '-x', str(packages[0]), folder],
                       check=True)
        return unpack(Path(folder) / PACKAGE_FOLDER, target)


def from_mmpretrain(target: Path) -> bool:
    """Let mmpretrain download the files."""
    from mmpretrain.datasets import FashionMNIST
    try:
        FashionMNIST(data_root=str(target), split='train', download=True)
    except (OSError, AssertionError) as error:
        print(f'mmpretrain could not download it: {error}', file=sys.stderr)
        return False
    return is_complete(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', type=Path)
    parser.add_argument('--source', type=Path)
    args = parser.parse_args()
    ways = {
        'the target folder': lambda: is_complete(args.target),
        '--source': lambda: args.source and unpack(args.source, args.target),
        "Debian's package, installed":
        lambda: unpack(Path('/') / PACKAGE_FOLDER, args.target),
        "Debian's package, downloaded": lambda: from_debian(args.target),
        "mmpretrain's download": lambda: from_mmpretrain(args.target),
    }
    for name, way in ways.items():
        if way():
            print(f'Fashion-MNIST is in {args.target} (from {name})')
            return
    sys.exit(f'no Fashion-MNIST from {", ".join(ways)}: put the four files '
             f'{", ".join(FILES)} in {args.target}')


if __name__ == '__main__':
    main()
