CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs(
  digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE layers(
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, description TEXT NOT NULL, diff_id TEXT, size_bytes INTEGER NOT NULL,
  has_directory INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX layers_by_diff_id ON layers(diff_id, has_directory) WHERE diff_id IS NOT NULL;
CREATE TABLE layer_blobs(
  layer_id TEXT NOT NULL, digest TEXT NOT NULL, compression TEXT NOT NULL, descriptor TEXT NOT NULL,
  PRIMARY KEY(layer_id, digest)) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs(digest);
CREATE TABLE repositories(
  digest TEXT NOT NULL, repository TEXT NOT NULL, PRIMARY KEY(digest, repository)) WITHOUT ROWID;
CREATE TABLE results(
  canonical TEXT PRIMARY KEY, outputs TEXT NOT NULL, vertex TEXT NOT NULL, description TEXT NOT NULL,
  record_type TEXT NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE result_layers(
  layer_id TEXT NOT NULL, canonical TEXT NOT NULL, below TEXT NOT NULL,
  PRIMARY KEY(layer_id, canonical, below)) WITHOUT ROWID;
CREATE INDEX result_layers_by_canonical ON result_layers(canonical);
CREATE TABLE keys(key TEXT PRIMARY KEY, canonical TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_by_canonical ON keys(canonical);
CREATE TABLE mounts(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  measured_ns INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE images(
  name TEXT PRIMARY KEY, digest TEXT NOT NULL, descriptor TEXT NOT NULL, created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_blobs(
  name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(name, digest)) WITHOUT ROWID;
CREATE INDEX image_blobs_by_digest ON image_blobs(digest);
