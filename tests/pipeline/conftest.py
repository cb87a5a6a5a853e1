import pytest
from support import release


@pytest.fixture(scope="session", params=["1.0", "1.1"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(f"release_{request.param}")
    release.write(path, request.param)
    return path
