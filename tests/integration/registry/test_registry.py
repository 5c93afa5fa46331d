"""The client against a real registry: plain, with a login, over TLS, and behind a bad network."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

import services
from crossdock.cancel import CancelToken
from crossdock.errors import AuthError, NotFoundError, RegistryError
from crossdock.image import Descriptor, Index, Manifest, make_manifest, parse_manifest, parse_reference
from crossdock.image.digest import sha256_digest
from crossdock.image.mediatypes import DOCKER_INDEX, OCI_CONFIG, OCI_INDEX, OCI_LAYER
from crossdock.registry import Credentials, RegistryClient, RegistryConfig
from crossdock.registry.exchange import RetryPolicy
from crossdock.registry.upload import PushOutcome
from support.chaos import ChaosRelay
from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("registry")

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


class Machine:
    """A user's files, and a client that uses them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients: list[RegistryClient] = []

    def trust(self, registry: services.Registry) -> None:
        """Put the CA where docker looks for it."""
        assert registry.ca is not None
        target = self._folder / "certs.d" / registry.host / "ca.crt"
        target.parent.mkdir(parents=True)
        target.write_bytes(registry.ca.read_bytes())

    def login(self, registry: services.Registry, password: str = services.PASSWORD) -> None:
        """Do what ``docker login`` does."""
        auth = base64.b64encode(f"{services.USERNAME}:{password}".encode()).decode()
        (self._folder / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))

    def client(self, *, insecure: bool = False) -> RegistryClient:
        client = RegistryClient(
            config=RegistryConfig(cert_dirs=[self._folder / "certs.d"]),
            credentials=Credentials(env={"DOCKER_CONFIG": str(self._folder)}),
            cancel=CancelToken(),
            insecure=insecure,
            retry=RetryPolicy(pause_s=0.01),
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def blob(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, sha256_digest(data), len(data))


def opener(data: bytes) -> Callable[[int], BinaryIO]:
    return lambda offset: io.BytesIO(data[offset:])


@pytest.fixture(
    scope="session",
    params=["registry", "registry_auth", pytest.param("registry_tls", marks=pytest.mark.needs("openssl"))],
)
def each_registry(request: pytest.FixtureRequest) -> tuple[str, services.Registry]:
    """Each kind of registry, by its fixture's name."""
    return request.param, request.getfixturevalue(request.param)


@pytest.fixture
def reachable(each_registry: tuple[str, services.Registry], machine: Machine) -> services.Registry:
    """Each kind of registry, with the machine set up for it."""
    name, registry = each_registry
    if name == "registry_auth":
        machine.login(registry)
    if name == "registry_tls":
        machine.trust(registry)
    return registry


def test_an_image_s_whole_life(reachable: services.Registry, machine: Machine) -> None:
    client = machine.client()
    layer = os.urandom(3_000_000)
    ref = parse_reference(f"{reachable.host}/life/app:1")
    config, one = blob(CONFIG, OCI_CONFIG), blob(layer)
    assert not client.blob_exists(ref, one.digest)
    assert client.push_blob(ref, one, opener(layer)) is PushOutcome.UPLOADED
    assert client.push_blob(ref, one, opener(layer)) is PushOutcome.EXISTS
    client.push_blob(ref, config, opener(CONFIG))
    assert client.blob_exists(ref, one.digest)

    manifest = make_manifest(config, [one], oci=True)
    assert client.head_manifest(ref) is None
    client.push_manifest(ref, manifest.descriptor, manifest.raw)
    assert client.head_manifest(ref) == manifest.descriptor
    assert client.resolve(ref) == manifest.descriptor
    pinned = ref.with_digest(manifest.descriptor.digest)
    assert client.fetch_manifest(pinned) == (manifest.descriptor, manifest.raw)
    assert client.fetch_blob(ref, config) == CONFIG
    with client.open_blob(ref, one) as reader:
        assert reader.read() == layer
    assert client.list_tags(ref) == ["1"]
    assert client.referrers(pinned).manifests == ()

    other = parse_reference(f"{reachable.host}/life/other:1")
    assert client.push_blob(other, one, opener(b""), mount_from=[ref.repository]) is PushOutcome.MOUNTED
    client.delete_manifest(pinned)
    with pytest.raises(NotFoundError):
        client.resolve(ref)


def test_a_manifest_without_its_parts_is_refused(registry: services.Registry, machine: Machine) -> None:
    manifest = make_manifest(blob(CONFIG, OCI_CONFIG), [blob(b"absent")], oci=True)
    ref = parse_reference(f"{registry.host}/parts/app:1")
    with pytest.raises(RegistryError) as caught:
        machine.client().push_manifest(ref, manifest.descriptor, manifest.raw)
    assert "MANIFEST_BLOB_UNKNOWN" in caught.value.codes


@pytest.mark.needs("skopeo")
def test_skopeo_sees_what_was_pushed(registry: services.Registry, machine: Machine) -> None:
    client = machine.client()
    ref = parse_reference(f"{registry.host}/seen/app:1")
    client.push_blob(ref, blob(CONFIG), opener(CONFIG))
    manifest = make_manifest(blob(CONFIG, OCI_CONFIG), [], oci=True)
    client.push_manifest(ref, manifest.descriptor, manifest.raw)
    seen = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{ref}")
    assert seen.stdout.encode() == manifest.raw


@pytest.mark.needs("base")
@pytest.mark.parametrize(("kind", "media_type"), [("index", OCI_INDEX), ("docker", DOCKER_INDEX)])
def test_images_of_another_maker_are_read(
    base: BaseImages, machine: Machine, kind: str, media_type: str
) -> None:
    client = machine.client()
    ref = parse_reference(getattr(base, kind))
    descriptor, raw = client.fetch_manifest(ref)
    assert descriptor.media_type == media_type
    index = parse_manifest(raw, descriptor.media_type, str(ref))
    assert isinstance(index, Index)
    assert len(index.manifests) == 6
    for entry in index.manifests:
        manifest = parse_manifest(client.fetch_manifest(ref.with_digest(entry.digest))[1], "", "x")
        assert isinstance(manifest, Manifest)
        for part in (manifest.config, *manifest.layers):
            with client.open_blob(ref, part) as reader:
                assert len(reader.read()) == part.size


def test_no_login(registry_auth: services.Registry, machine: Machine) -> None:
    ref = parse_reference(f"{registry_auth.host}/x:1")
    with pytest.raises(AuthError, match="wants a login to pull") as caught:
        machine.client().resolve(ref)
    assert caught.value.hint == f"log in: `docker login {registry_auth.host}`"


def test_a_wrong_login(registry_auth: services.Registry, machine: Machine, tmp_path: Path) -> None:
    machine.login(registry_auth, "not the password")
    with pytest.raises(AuthError, match="does not accept the login from") as caught:
        machine.client().resolve(parse_reference(f"{registry_auth.host}/x:1"))
    assert str(tmp_path / "config.json") in caught.value.summary
    assert "not the password" not in caught.value.summary + (caught.value.detail or "")


@pytest.mark.needs("openssl")
def test_an_unknown_authority(registry_tls: services.Registry, machine: Machine) -> None:
    ref = parse_reference(f"{registry_tls.host}/x:1")
    with pytest.raises(RegistryError, match="its TLS certificate is not trusted") as caught:
        machine.client().resolve(ref)
    assert f"certs.d/{registry_tls.host}/ca.crt" in (caught.value.hint or "")
    with pytest.raises(NotFoundError):
        machine.client(insecure=True).resolve(ref)


@pytest.mark.needs("openssl")
def test_a_name_the_certificate_is_not_for(registry_tls: services.Registry, machine: Machine) -> None:
    port = registry_tls.host.rpartition(":")[2]
    host = f"127.0.0.2:{port}"
    with ChaosRelay(registry_tls.host) as relay:
        registry_tls_as = services.Registry()
        registry_tls_as.host, registry_tls_as.ca = relay.host, registry_tls.ca
        machine.trust(registry_tls_as)
        with pytest.raises(NotFoundError):  # the relay has the certificate's own address: trusted
            machine.client().resolve(parse_reference(f"{relay.host}/x:1"))
    with pytest.raises(RegistryError, match="cannot connect"):
        machine.client().resolve(parse_reference(f"{host}/x:1"))


def test_an_upload_survives_a_bad_network(registry: services.Registry, machine: Machine) -> None:
    data = os.urandom(8_000_000)
    with ChaosRelay(registry.host, up=[100_000, 5_000_000, 7_900_000]) as relay:
        ref = parse_reference(f"{relay.host}/chaos/up:1")
        outcome = machine.client().push_blob(ref, blob(data), opener(data))
        assert relay.broken == 3
        machine.close()
    assert outcome is PushOutcome.UPLOADED
    direct = parse_reference(f"{registry.host}/chaos/up:1")
    with machine.client().open_blob(direct, blob(data)) as reader:
        assert reader.read() == data


def test_a_download_survives_a_bad_network(registry: services.Registry, machine: Machine) -> None:
    data = os.urandom(8_000_000)
    direct = parse_reference(f"{registry.host}/chaos/down:1")
    machine.client().push_blob(direct, blob(data), opener(data))
    with ChaosRelay(registry.host, down=[100_000, 2_000_000, 3_000_000]) as relay:
        client = machine.client()
        with client.open_blob(parse_reference(f"{relay.host}/chaos/down:1"), blob(data)) as reader:
            assert reader.read() == data
        assert relay.broken == 3
        machine.close()


def test_many_transfers_at_once(registry: services.Registry, machine: Machine) -> None:
    client = machine.client()
    ref = parse_reference(f"{registry.host}/many/app:1")
    parts = [os.urandom(500_000) for _ in range(12)]
    read_back: list[bool] = []

    def work(data: bytes) -> None:
        client.push_blob(ref, blob(data), opener(data))
        with client.open_blob(ref, blob(data)) as reader:
            read_back.append(reader.read() == data)

    threads = [threading.Thread(target=work, args=(data,)) for data in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_back == [True] * len(parts)


def test_a_registry_that_went_away(machine: Machine) -> None:
    with services.Registry() as gone:
        ref = parse_reference(f"{gone.host}/x:1")
        client = machine.client()
        with pytest.raises(NotFoundError):
            client.resolve(ref)
    with pytest.raises(RegistryError, match="connection refused"):
        client.resolve(ref)
