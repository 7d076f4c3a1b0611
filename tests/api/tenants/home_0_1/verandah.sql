BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE checkpoints (
	number INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	job VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	model TEXT NOT NULL, 
	metrics JSON NOT NULL, 
	CONSTRAINT pk_checkpoints PRIMARY KEY (number), 
	CONSTRAINT fk_checkpoints_job_jobs FOREIGN KEY(job) REFERENCES jobs (id), 
	CONSTRAINT fk_checkpoints_owner_owners FOREIGN KEY(owner) REFERENCES owners (id), 
	CONSTRAINT uq_checkpoints_id UNIQUE (id)
);
INSERT INTO "checkpoints" VALUES(1,'ftckpt_0c316c626e092e300c854726','default','ftjob-2feb073f1f769804dab6a204',1796026792,3,'pirate@1','{"step": 3, "train_loss": 7.065489602088928, "train_mean_token_accuracy": 0.0, "valid_loss": 6.894150870186942, "valid_mean_token_accuracy": 0.0}');
CREATE TABLE events (
	number INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	job VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	level VARCHAR(64) NOT NULL, 
	type VARCHAR(64) NOT NULL, 
	message TEXT NOT NULL, 
	data JSON, 
	CONSTRAINT pk_events PRIMARY KEY (number), 
	CONSTRAINT fk_events_job_jobs FOREIGN KEY(job) REFERENCES jobs (id), 
	CONSTRAINT fk_events_owner_owners FOREIGN KEY(owner) REFERENCES owners (id), 
	CONSTRAINT uq_events_id UNIQUE (id)
);
INSERT INTO "events" VALUES(1,'ftevent-8a96129f7d9dd65da1e087da','default','ftjob-2feb073f1f769804dab6a204',1796026775,'info','message','Created fine-tuning job: ftjob-2feb073f1f769804dab6a204',NULL);
INSERT INTO "events" VALUES(2,'ftevent-69bb59551fd55ec7299f88f4','default','ftjob-2feb073f1f769804dab6a204',1796026775,'warn','message','the training file has 12 examples; 50 to 100 usually teach more',NULL);
INSERT INTO "events" VALUES(3,'ftevent-c08756b05a28230fcb33a259','default','ftjob-2feb073f1f769804dab6a204',1796026775,'info','message','Estimated: 12 examples, 342 tokens in all, 1 epochs, 3 steps, 314 trained tokens; about 1 seconds of training (by rule of thumb); an adapter of 2 KiB',NULL);
INSERT INTO "events" VALUES(4,'ftevent-6609be81e51ed909c55288bc','default','ftjob-2feb073f1f769804dab6a204',1796026775,'info','message','Files validated; the job waits for a worker',NULL);
INSERT INTO "events" VALUES(5,'ftevent-fcf4364af743a3ac1250890e','default','ftjob-2feb073f1f769804dab6a204',1796026790,'info','message','Fine-tuning job started',NULL);
INSERT INTO "events" VALUES(6,'ftevent-b4581773d2feb67a599cbf89','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','Training 104 parameters (vera d+b, rank 4) on 11 examples, with 1 more held out: 1 epoch, 3 steps of 4, learning rate 0.03 (cosine)',NULL);
INSERT INTO "events" VALUES(7,'ftevent-be9946fb9d09297b73790730','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','metrics','Step 0/3: validation loss=6.9032','{"step": 0, "total_steps": 3, "epoch": 0.0, "trained_tokens": 0, "learning_rate": 0.0, "tokens_per_second": 0.0, "seconds_left": 0.0, "valid_loss": 6.903217860630581, "valid_mean_token_accuracy": 0.0}');
INSERT INTO "events" VALUES(8,'ftevent-5e2920fd9e1894ad61696328','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','The adapter will be evaluated on 1 line held out from training. The base model''s loss is 6.9032',NULL);
INSERT INTO "events" VALUES(9,'ftevent-b19f8d2f9adcc54958840031','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','metrics','Step 3/3: training loss=7.0655, validation loss=6.8942','{"step": 3, "total_steps": 3, "epoch": 1.0, "trained_tokens": 312, "learning_rate": 0.007500000000000003, "tokens_per_second": 2565.4, "seconds_left": 0.0, "train_loss": 7.065489602088928, "train_mean_token_accuracy": 0.0, "valid_loss": 6.894150870186942, "valid_mean_token_accuracy": 0.0}');
INSERT INTO "events" VALUES(10,'ftevent-fdbd17730eccf1c34c5eb200','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','Validation loss: base model 6.9032, trained adapter 6.8942',NULL);
INSERT INTO "events" VALUES(11,'ftevent-bce7bf19d19f16155cdf3eee','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','Asked "Say 10": the base model says "�␓"�␀6,�gC���<��k�5␚n�H*ו1�c杪]", the adapter "�␓"�␀6,�gC���<��k��Ey��n��C␡�␏9�<���]�<�<�␄�vH ...", the file "Arr 10"','{"prompt": "Say 10", "expected": "Arr 10", "base": "\ufffd\u2413\"\ufffd\u24006,\ufffdgC\ufffd\ufffd\ufffd<\ufffd\ufffdk\ufffd5\u241an\ufffdH*\u05d51\ufffdc\u676a]", "adapter": "\ufffd\u2413\"\ufffd\u24006,\ufffdgC\ufffd\ufffd\ufffd<\ufffd\ufffdk\ufffd\ufffdEy\ufffd\ufffdn\ufffd\ufffdC\u2421\ufffd\u240f9\ufffd<\ufffd\ufffd\ufffd]\ufffd<\ufffd<\ufffd\u2404\ufffdvH ..."}');
INSERT INTO "events" VALUES(12,'ftevent-9331a353c789ded1b309b0ec','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','New fine-tuned model created: pirate@1',NULL);
INSERT INTO "events" VALUES(13,'ftevent-6073e6b0e278846f7704bb78','default','ftjob-2feb073f1f769804dab6a204',1796026792,'info','message','The job has successfully completed',NULL);
INSERT INTO "events" VALUES(14,'ftevent-c1df0a42c1289b2f256c4657','default','ftjob-7f63cc7f6e293cdc774b745c',1796026902,'info','message','Created fine-tuning job: ftjob-7f63cc7f6e293cdc774b745c',NULL);
INSERT INTO "events" VALUES(15,'ftevent-bf82d45297e1c04b90f7b022','default','ftjob-7f63cc7f6e293cdc774b745c',1796026902,'warn','message','the training file has 12 examples; 50 to 100 usually teach more',NULL);
INSERT INTO "events" VALUES(16,'ftevent-31cb4baa1b2868702cf39391','default','ftjob-7f63cc7f6e293cdc774b745c',1796026902,'info','message','Estimated: 12 examples, 342 tokens in all, 15 epochs, 45 steps, 4710 trained tokens; about 30 seconds of training (by the speed of earlier jobs); an adapter of 2 KiB',NULL);
INSERT INTO "events" VALUES(17,'ftevent-7d108eea956b80e125c356ff','default','ftjob-7f63cc7f6e293cdc774b745c',1796026902,'info','message','Files validated; the job waits for a worker',NULL);
INSERT INTO "events" VALUES(18,'ftevent-ac352810e83cdd5654790d93','default','ftjob-7f63cc7f6e293cdc774b745c',1796026902,'info','message','The job is paused; resume it to continue',NULL);
CREATE TABLE files (
	number INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	filename VARCHAR(255) NOT NULL, 
	purpose VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, expires_at BIGINT, 
	CONSTRAINT pk_files PRIMARY KEY (number), 
	CONSTRAINT fk_files_owner_owners FOREIGN KEY(owner) REFERENCES owners (id), 
	CONSTRAINT uq_files_id UNIQUE (id)
);
INSERT INTO "files" VALUES(1,'file-aa94e4b84bb6f1eb94d38d9f','default','lines.jsonl','fine-tune',1062,'f0f46dd99cba98234d05f40b18ad4f51175e726769cd56cc6082a875294ad931',1796026775,NULL);
INSERT INTO "files" VALUES(2,'file-b379d83b225deaad8c288fd5','default','step_metrics-ftjob-2feb073f1f769804dab6a204.csv','fine-tune-results',139,'565c20b8f8634303161abc26bed6ea99e59c30b77b880ba2857ad53b8a1831e9',1796026792,NULL);
CREATE TABLE jobs (
	number INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	status VARCHAR(64) NOT NULL, 
	model TEXT NOT NULL, 
	training_file VARCHAR(64) NOT NULL, 
	validation_file VARCHAR(64), 
	suffix VARCHAR(64), 
	seed BIGINT NOT NULL, 
	hyperparameters TEXT NOT NULL, 
	metadata JSON NOT NULL, 
	created_at BIGINT NOT NULL, 
	started_at DOUBLE, 
	finished_at BIGINT, 
	estimated_finish BIGINT, 
	fine_tuned_model TEXT, 
	trained_tokens BIGINT, 
	error_code TEXT, 
	error_message TEXT, 
	error_param TEXT, 
	cancel_requested BOOLEAN NOT NULL, 
	attempt INTEGER NOT NULL, 
	worker TEXT, 
	lease_s DOUBLE, 
	lease_until DOUBLE, 
	step BIGINT NOT NULL, 
	losses INTEGER NOT NULL, pause_requested BOOLEAN DEFAULT 0 NOT NULL, result_file VARCHAR(64), appraisal JSON, judgement JSON, samples JSON, "plan" JSON, 
	CONSTRAINT pk_jobs PRIMARY KEY (number), 
	CONSTRAINT fk_jobs_owner_owners FOREIGN KEY(owner) REFERENCES owners (id), 
	CONSTRAINT uq_jobs_id UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'ftjob-2feb073f1f769804dab6a204','default','succeeded','base','file-aa94e4b84bb6f1eb94d38d9f',NULL,'pirate',9917954,'{"batch_size": 4, "method": "vera", "n_epochs": 1, "publish": "always", "rank": 4, "targets": ["q_proj"]}','{"team": "old"}',1796026775,1.79602679003453874592e+09,1796026792,NULL,'pirate@1',312,NULL,NULL,NULL,0,1,NULL,30.0,NULL,3,0,0,'file-b379d83b225deaad8c288fd5','{"examples": 12, "counted": 12, "tokens": 342, "longest": 30, "n_epochs": 1, "batch_size": 4, "steps": 3, "trained_tokens": 314, "seconds": 1, "measured": false, "parameters": 104, "adapter_bytes": 2356, "warnings": ["the training file has 12 examples; 50 to 100 usually teach more"]}','{"lines": 1, "held_out": true, "base_loss": 6.903217860630581, "start_loss": null, "adapter_loss": 6.894150870186942, "last_loss": 6.894150870186942, "step": 3, "verdict": "better"}','[{"prompt": "Say 10", "expected": "Arr 10", "base": "\ufffd\u2413\"\ufffd\u24006,\ufffdgC\ufffd\ufffd\ufffd<\ufffd\ufffdk\ufffd5\u241an\ufffdH*\u05d51\ufffdc\u676a]", "adapter": "\ufffd\u2413\"\ufffd\u24006,\ufffdgC\ufffd\ufffd\ufffd<\ufffd\ufffdk\ufffd\ufffdEy\ufffd\ufffdn\ufffd\ufffdC\u2421\ufffd\u240f9\ufffd<\ufffd\ufffd\ufffd]\ufffd<\ufffd<\ufffd\u2404\ufffdvH ..."}]','{"method": "vera", "rank": 4, "targets": ["q_proj"], "learning_rate": 0.03, "learning_rate_multiplier": 1.0, "n_epochs": 1, "batch_size": 4, "warmup_ratio": 0.06, "schedule": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.0, "trained": "d+b", "basis": "shared", "d_initial": 0.1, "dropout": 0.0, "seed": 9917954, "validation_split": 0.1, "max_tokens_per_batch": 2048, "checkpoints": 2, "publish": "always"}');
INSERT INTO "jobs" VALUES(2,'ftjob-7f63cc7f6e293cdc774b745c','default','paused','pirate@1','file-aa94e4b84bb6f1eb94d38d9f',NULL,'later',586725389,'{"method": "vera", "rank": 4, "targets": ["q_proj"], "trained": "d+b"}','{}',1796026902,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,0,0,0,NULL,'{"examples": 12, "counted": 12, "tokens": 342, "longest": 30, "n_epochs": 15, "batch_size": 4, "steps": 45, "trained_tokens": 4710, "seconds": 30, "measured": true, "parameters": 104, "adapter_bytes": 2356, "warnings": ["the training file has 12 examples; 50 to 100 usually teach more"]}',NULL,NULL,NULL);
CREATE TABLE keys (
	number INTEGER NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	prefix VARCHAR(16) NOT NULL, 
	created_at BIGINT NOT NULL, 
	revoked_at BIGINT, 
	CONSTRAINT pk_keys PRIMARY KEY (number), 
	CONSTRAINT fk_keys_owner_owners FOREIGN KEY(owner) REFERENCES owners (id), 
	CONSTRAINT uq_keys_sha256 UNIQUE (sha256)
);
CREATE TABLE labels (
	job VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_labels PRIMARY KEY (job, "key"), 
	CONSTRAINT fk_labels_job_jobs FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "labels" VALUES('ftjob-2feb073f1f769804dab6a204','team','old');
CREATE TABLE owners (
	id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT pk_owners PRIMARY KEY (id)
);
INSERT INTO "owners" VALUES('default',1796026723);
CREATE INDEX ix_files_owner ON files (owner, number);
CREATE INDEX ix_jobs_owner ON jobs (owner, number);
CREATE INDEX ix_jobs_owner_started ON jobs (owner, started_at);
CREATE INDEX ix_jobs_status ON jobs (status, owner, number);
CREATE INDEX ix_keys_owner ON keys (owner);
CREATE INDEX ix_checkpoints_job ON checkpoints (job, number);
CREATE INDEX ix_events_job ON events (job, number);
CREATE INDEX ix_labels_key ON labels ("key", value, job);
COMMIT;
