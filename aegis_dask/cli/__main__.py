"""``python -m aegis_dask.cli``."""

from aegis_dask.cli import main

if __name__ == "__main__":
    main()
