import pickle

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset

from data_shards.archive.dicom_header import subject_key
from data_shards.archive.identity import Identity, PrivacyConfig, read_identity
from data_shards.errors import InputError

SALT = b"sixteen bytes or more of a secret"
IDENTITY = Identity(salt=SALT)


def person(**elements: str) -> str:
    header = Dataset()
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    return subject_key(header, IDENTITY)


def test_a_key_is_the_hmac_of_kind_and_text_and_keeps_texts_apart():
    import hashlib
    import hmac

    by_hand = hmac.new(SALT, b'["subject", "a", "bc"]', hashlib.sha256).hexdigest()[:16]
    keys = [
        IDENTITY.key("subject", "a", "bc"),
        IDENTITY.key("subject", "ab", "c"),
        IDENTITY.key("session", "a", "bc"),
        Identity(salt=SALT + b"!").key("subject", "a", "bc"),
    ]
    assert keys[0] == by_hand and len(set(keys)) == 4


def test_an_identity_travels_to_workers_but_never_prints_its_salt():
    there = pickle.loads(pickle.dumps(IDENTITY))
    assert there.key("case", "x") == IDENTITY.key("case", "x")
    for text in (repr(IDENTITY), str(IDENTITY), f"{there}"):
        assert "secret" not in text and "salt" not in text


def test_the_salt_comes_from_the_file_or_the_environment(tmp_path):
    (tmp_path / "salt").write_bytes(SALT + b"\r\n")
    from_file = read_identity(PrivacyConfig(salt_file=tmp_path / "salt"), {})
    from_environment = read_identity(PrivacyConfig(), {"MAETRAIN_SALT": SALT.decode()})
    assert (
        from_file
        == from_environment
        == read_identity(PrivacyConfig(salt_file=tmp_path / "salt"), {"MAETRAIN_SALT": SALT.decode()})
    )
    assert read_identity(PrivacyConfig(), {}).salt is None


def test_a_salt_that_cannot_be_used_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "salt").write_bytes(b"fifteen bytes.." + b"\n")
    for config, environ, message in [
        (PrivacyConfig(salt_file=tmp_path / "salt"), {}, "has 15 bytes, fewer than 16"),
        (PrivacyConfig(salt_file=tmp_path / "none"), {}, "salt_file can't be read"),
        (PrivacyConfig(), {"MAETRAIN_SALT": "short"}, "has 5 bytes"),
        (PrivacyConfig(names="hash"), {}, "there is no salt"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read_identity(config, environ)
        assert "head -c 32 /dev/urandom" in str(caught.value) and "fifteen" not in str(caught.value)
    (tmp_path / "salt").write_bytes(SALT)
    with pytest.raises(InputError, match="hold different salts"):
        read_identity(PrivacyConfig(salt_file=tmp_path / "salt"), {"MAETRAIN_SALT": "another salt, as long"})


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        PrivacyConfig(salt="on the command line")


def test_blanks_and_padding_do_not_make_another_person():
    assert len({person(PatientID=text) for text in ("17", " 17", "17 ", "17\0", "\t17 \0 ")}) == 1
    assert (
        len({person(PatientName=name, PatientBirthDate="19610203") for name in ("Doe^Jane", "Doe^Jane^^", "Doe^Jane ")})
        == 1
    )


def test_an_issuer_does_not_make_two_persons_of_one_id():
    assert person(PatientID="17", IssuerOfPatientID="Clinic B") == person(PatientID="17")


def test_persons_are_told_apart_by_id_name_birth_date_and_study_in_this_order():
    persons = [
        person(PatientID="17", PatientName="Doe^Jane"),
        person(PatientID="18", PatientName="Doe^Jane"),
        person(PatientID=" ", PatientName="Doe^Jane", PatientBirthDate="19610203"),
        person(PatientName="Doe^Jane", PatientBirthDate="19610204"),
        person(PatientName="17"),  # a name is no id
        person(StudyInstanceUID="1.2.3"),
        person(StudyInstanceUID="1.2.4"),
    ]
    assert len(set(persons)) == len(persons)
    assert persons[0] == person(PatientID="17", PatientName="Doe-Smith^Jane", StudyInstanceUID="1.9")
