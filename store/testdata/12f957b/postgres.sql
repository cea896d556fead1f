CREATE TABLE public.usage_history (
    step smallint NOT NULL,
    bucket bigint NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    value bigint NOT NULL
)
WITH (fillfactor='70');

CREATE VIEW public.usage_daily AS
 SELECT to_timestamp((usage_history.bucket)::double precision) AS "time",
    usage_history.key,
    usage_history.value
   FROM public.usage_history
  WHERE (usage_history.step = 2);

CREATE VIEW public.usage_hourly AS
 SELECT to_timestamp((usage_history.bucket)::double precision) AS "time",
    usage_history.key,
    usage_history.value
   FROM public.usage_history
  WHERE (usage_history.step = 1);

CREATE TABLE public.usage_inbox (
    writer text NOT NULL COLLATE pg_catalog."C",
    seq bigint NOT NULL,
    opened bigint NOT NULL,
    payload bytea NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0', autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='-1', autovacuum_analyze_scale_factor='0', autovacuum_analyze_threshold='100000', toast.autovacuum_vacuum_scale_factor='0', toast.autovacuum_vacuum_threshold='20000', toast.autovacuum_vacuum_cost_delay='0');
ALTER TABLE ONLY public.usage_inbox ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TABLE public.usage_meta (
    name text NOT NULL COLLATE pg_catalog."C",
    value text NOT NULL
);

CREATE TABLE public.usage_metrics (
    key text NOT NULL COLLATE pg_catalog."C",
    value bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE public.usage_writers (
    writer text NOT NULL COLLATE pg_catalog."C",
    seq bigint NOT NULL,
    sum bytea NOT NULL,
    seen bigint NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.GET /novels/{id}.latency_100ms', 10);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.GET /novels/{id}.latency_5ms', 30);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.GET /novels/{id}.requests', 40);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.GET /novels/{id}.status_2xx', 38);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.GET /novels/{id}.status_5xx', 2);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.latency_100ms', 10);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.latency_5ms', 30);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.novels', 40);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.status_2xx', 38);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.status_5xx', 2);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'api.requests.total', 40);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'bare', 5);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'error.llm.timeout', 2);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'feature.chapter.written', 4);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'feature.outline.generated', 9);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'llm.gpt-5.calls', 4);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'llm.gpt-5.input_tokens', 4000);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'llm.gpt-5.output_tokens', 900);
INSERT INTO public.usage_history VALUES (1, 1709154000, 'llm.gpt-5.tokens', 4900);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.GET /novels/{id}.latency_inf', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.GET /novels/{id}.requests', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.GET /novels/{id}.status_2xx', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.POST /novels.requests', 5);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.POST /novels.status_4xx', 5);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.latency_inf', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.novels', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.novels.new', 5);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.status_2xx', 11);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.status_4xx', 5);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'api.requests.total', 16);
INSERT INTO public.usage_history VALUES (1, 1709161200, 'feature.outline.generated', 2);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.GET /novels/{id}.latency_100ms', 10);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.GET /novels/{id}.latency_5ms', 30);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.GET /novels/{id}.requests', 40);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.GET /novels/{id}.status_2xx', 38);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.GET /novels/{id}.status_5xx', 2);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.latency_100ms', 10);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.latency_5ms', 30);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.novels', 40);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.status_2xx', 38);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.status_5xx', 2);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'api.requests.total', 40);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'bare', 5);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'error.llm.timeout', 2);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'feature.chapter.written', 4);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'feature.outline.generated', 9);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'llm.gpt-5.calls', 4);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'llm.gpt-5.input_tokens', 4000);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'llm.gpt-5.output_tokens', 900);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'llm.gpt-5.tokens', 4900);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'user.registrations', 3);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.GET /novels/{id}.latency_inf', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.GET /novels/{id}.requests', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.GET /novels/{id}.status_2xx', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.POST /novels.requests', 5);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.POST /novels.status_4xx', 5);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.latency_inf', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.novels', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.novels.new', 5);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.status_2xx', 11);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.status_4xx', 5);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'api.requests.total', 16);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'feature.outline.generated', 2);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.registrations', 3);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'user.42.requests', 25);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'user.7.requests', 15);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'user.42.7.requests', 2);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'user.42.requests', 8);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'user.jörg@example.com.requests', 1);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.42.7.requests', 2);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.42.requests', 33);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.7.requests', 15);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.jörg@example.com.requests', 1);
INSERT INTO public.usage_history VALUES (2, 1709074800, 'user.active.daily', 2);
INSERT INTO public.usage_history VALUES (2, 1709161200, 'user.active.daily', 3);
INSERT INTO public.usage_history VALUES (3, 1706742000, 'user.active.monthly', 4);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.(unmatched).requests', 2);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.(unmatched).status_4xx', 2);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.GET /novels/{id}.latency_25ms', 60);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.GET /novels/{id}.requests', 60);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.GET /novels/{id}.status_2xx', 57);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.GET /novels/{id}.status_5xx', 3);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.latency_25ms', 60);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.novels', 60);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.status_2xx', 57);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.status_4xx', 2);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.status_5xx', 3);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'api.requests.total', 62);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'feature.(other).used', 13);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'feature.map.drawn', 1);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'feature.outline.generated', 30);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'llm.(other).calls', 2);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'llm.(other).tokens', 50);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'llm.gpt-5.calls', 1);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'llm.gpt-5.tokens', 100);
INSERT INTO public.usage_history VALUES (1, 1711836000, 'quota.42.refused', 3);
INSERT INTO public.usage_history VALUES (1, 1711843200, 'api.GET /novels/{id}.requests', 3);
INSERT INTO public.usage_history VALUES (1, 1711843200, 'api.GET /novels/{id}.status_2xx', 3);
INSERT INTO public.usage_history VALUES (1, 1711843200, 'api.requests.status_2xx', 3);
INSERT INTO public.usage_history VALUES (1, 1711843200, 'api.requests.total', 3);
INSERT INTO public.usage_history VALUES (1, 1711846800, 'api.GET /novels/{id}.requests', 4);
INSERT INTO public.usage_history VALUES (1, 1711846800, 'api.GET /novels/{id}.status_2xx', 4);
INSERT INTO public.usage_history VALUES (1, 1711846800, 'api.requests.status_2xx', 4);
INSERT INTO public.usage_history VALUES (1, 1711846800, 'api.requests.total', 4);
INSERT INTO public.usage_history VALUES (1, 1729987200, 'error.llm.timeout', 1);
INSERT INTO public.usage_history VALUES (1, 1729987200, 'feature.outline.generated', 1);
INSERT INTO public.usage_history VALUES (1, 1729990800, 'error.llm.timeout', 4);
INSERT INTO public.usage_history VALUES (1, 1729990800, 'feature.outline.generated', 2);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.(unmatched).requests', 2);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.(unmatched).status_4xx', 2);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.GET /novels/{id}.latency_25ms', 60);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.GET /novels/{id}.requests', 60);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.GET /novels/{id}.status_2xx', 57);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.GET /novels/{id}.status_5xx', 3);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.latency_25ms', 60);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.novels', 60);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.status_2xx', 57);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.status_4xx', 2);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.status_5xx', 3);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'api.requests.total', 62);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'feature.(other).used', 13);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'feature.map.drawn', 1);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'feature.outline.generated', 30);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'llm.(other).calls', 2);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'llm.(other).tokens', 50);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'llm.gpt-5.calls', 1);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'llm.gpt-5.tokens', 100);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'quota.42.refused', 3);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'api.GET /novels/{id}.requests', 7);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'api.GET /novels/{id}.status_2xx', 7);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'api.requests.status_2xx', 7);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'api.requests.total', 7);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'error.llm.timeout', 5);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'feature.outline.generated', 3);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'user.42.requests', 31);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'user.7.requests', 20);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'user.42.requests', 1);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'user.7.requests', 2);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'user.9.requests', 3);
INSERT INTO public.usage_history VALUES (3, 1709247600, 'user.42.requests', 32);
INSERT INTO public.usage_history VALUES (3, 1709247600, 'user.7.requests', 22);
INSERT INTO public.usage_history VALUES (3, 1727733600, 'user.9.requests', 3);
INSERT INTO public.usage_history VALUES (2, 1711753200, 'user.active.daily', 2);
INSERT INTO public.usage_history VALUES (2, 1711839600, 'user.active.daily', 2);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'user.active.daily', 1);
INSERT INTO public.usage_history VALUES (3, 1709247600, 'user.active.monthly', 2);
INSERT INTO public.usage_history VALUES (3, 1727733600, 'user.active.monthly', 1);
INSERT INTO public.usage_history VALUES (2, 1730070000, 'quota.42.daily', 7);
INSERT INTO public.usage_history VALUES (1, 1730073600, 'quota.42.hourly', 4);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'quota.7.daily', 2);
INSERT INTO public.usage_history VALUES (1, 1729998000, 'usagekit.counts.dropped', 63);
INSERT INTO public.usage_history VALUES (2, 1729980000, 'usagekit.counts.dropped', 63);

INSERT INTO public.usage_inbox VALUES ('d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4', 2, 1730003400000, '\x01c0eaf3e1ac3205001d6170692e474554202f6e6f76656c732f7b69647d2e726571756573747302150a7374617475735f327878020012666561747572652e6c617465722e757365640908116f75746c696e652e67656e657261746564500010757365722e34322e726571756573747303fcae8d81a2482299f2646e6c357b00a3');
INSERT INTO public.usage_inbox VALUES ('d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4', 3, 1730075400000, '\x01c0ae9e84ad32020010757365722e31312e726571756573747301050b34322e726571756573747309721a59dbc630dbfd9e92d907c642b2cd');
INSERT INTO public.usage_inbox VALUES ('e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', 1, 1730076300000, '\x01e0a5d584ad320400196170692e504f5354202f6e6f76656c732e726571756573747303110a7374617475735f3278780300046261726501000f757365722e372e72657175657374730376e91a4e93b24c407b7ecb11fae8b9b2');
INSERT INTO public.usage_inbox VALUES ('b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', 3, 1711847400000, '\x01c0c4b990e93103001d6170692e474554202f6e6f76656c732f7b69647d2e726571756573747304150a7374617475735f32787804000f757365722e372e726571756573747302571b221c87a5fe99ae3750cfe01a5371');

INSERT INTO public.usage_meta VALUES ('schema', '3');
INSERT INTO public.usage_meta VALUES ('id', '79701e1ed52e1064130712c74982e6a3');
INSERT INTO public.usage_meta VALUES ('zone', 'Europe/Berlin');
INSERT INTO public.usage_meta VALUES ('subjects', 'a71450e6d6f4a8ed3ae55ca50a811592');
INSERT INTO public.usage_meta VALUES ('bad/c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3/3', 'ASB3aGF0IGEgZGlzayBtYWRlIG9mIGEgYmF0Y2gsIHdoaWNoIGlzIG5vIGJhdGNoIGFueSBtb3Jl');
INSERT INTO public.usage_meta VALUES ('bad/d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4/1', 'AcCNmOCsMgQAF2ZlYXR1cmUuY2hhcHRlci53cml0dGVuMgAQcXVvdGEuNDIucmVmdXNlZAEAEHVzZXIuNDIucmVxdWVzdHMGBQo3LnJlcXVlc3RzBQohnW+jFEKjdXHeW5nkiWQ=');
INSERT INTO public.usage_meta VALUES ('folded', '1730073600000');
INSERT INTO public.usage_meta VALUES ('lease', 'd4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/0/0/10/feature.outline.generated', '11 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/0/0/100/api.GET /novels/{id}.requests', '118 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/1/1709154000/2/api.requests.status_5xx', '2 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/1/1711836000/2/api.requests.status_5xx', '3 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/2/1709074800/20/user.42.requests', '25 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/2/1711753200/20/user.42.requests', '31 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/2/1711753200/20/user.7.requests', '20 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/2/1711753200/50/api.requests.total', '62 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/3/1706742000/3/user.active.monthly', '4 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/3/1706742000/30/user.42.requests', '33 1730073600000');
INSERT INTO public.usage_meta VALUES ('crossing/3/1709247600/30/user.42.requests', '32 1730073600000');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/0/0/100/api.GET /novels/{id}.requests', '1730073600000 1 118');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/1/1711836000/2/api.requests.status_5xx', '0 0 3');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/2/1711753200/20/user.42.requests', '0 0 31');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/2/1711753200/20/user.7.requests', '0 0 20');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/2/1711753200/50/api.requests.total', '0 0 62');
INSERT INTO public.usage_meta VALUES ('notify/1730073600000/3/1709247600/30/user.42.requests', '0 0 32');

INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.latency_100ms', 10);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.latency_5ms', 30);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.latency_inf', 11);
INSERT INTO public.usage_metrics VALUES ('api.POST /novels.requests', 5);
INSERT INTO public.usage_metrics VALUES ('api.POST /novels.status_4xx', 5);
INSERT INTO public.usage_metrics VALUES ('api.requests.latency_100ms', 10);
INSERT INTO public.usage_metrics VALUES ('api.requests.latency_5ms', 30);
INSERT INTO public.usage_metrics VALUES ('api.requests.latency_inf', 11);
INSERT INTO public.usage_metrics VALUES ('api.requests.novels.new', 5);
INSERT INTO public.usage_metrics VALUES ('bare', 5);
INSERT INTO public.usage_metrics VALUES ('feature.chapter.written', 4);
INSERT INTO public.usage_metrics VALUES ('llm.gpt-5.input_tokens', 4000);
INSERT INTO public.usage_metrics VALUES ('llm.gpt-5.output_tokens', 900);
INSERT INTO public.usage_metrics VALUES ('user.42.7.requests', 2);
INSERT INTO public.usage_metrics VALUES ('user.jörg@example.com.requests', 1);
INSERT INTO public.usage_metrics VALUES ('user.registrations', 3);
INSERT INTO public.usage_metrics VALUES ('api.(unmatched).requests', 2);
INSERT INTO public.usage_metrics VALUES ('api.(unmatched).status_4xx', 2);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.latency_25ms', 60);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.requests', 118);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.status_2xx', 113);
INSERT INTO public.usage_metrics VALUES ('api.GET /novels/{id}.status_5xx', 5);
INSERT INTO public.usage_metrics VALUES ('api.requests.latency_25ms', 60);
INSERT INTO public.usage_metrics VALUES ('api.requests.novels', 111);
INSERT INTO public.usage_metrics VALUES ('api.requests.status_2xx', 113);
INSERT INTO public.usage_metrics VALUES ('api.requests.status_4xx', 7);
INSERT INTO public.usage_metrics VALUES ('api.requests.status_5xx', 5);
INSERT INTO public.usage_metrics VALUES ('api.requests.total', 125);
INSERT INTO public.usage_metrics VALUES ('error.llm.timeout', 7);
INSERT INTO public.usage_metrics VALUES ('feature.(other).used', 13);
INSERT INTO public.usage_metrics VALUES ('feature.map.drawn', 1);
INSERT INTO public.usage_metrics VALUES ('feature.outline.generated', 44);
INSERT INTO public.usage_metrics VALUES ('llm.(other).calls', 2);
INSERT INTO public.usage_metrics VALUES ('llm.(other).tokens', 50);
INSERT INTO public.usage_metrics VALUES ('llm.gpt-5.calls', 5);
INSERT INTO public.usage_metrics VALUES ('llm.gpt-5.tokens', 5000);
INSERT INTO public.usage_metrics VALUES ('quota.42.refused', 3);
INSERT INTO public.usage_metrics VALUES ('user.42.requests', 65);
INSERT INTO public.usage_metrics VALUES ('user.7.requests', 37);
INSERT INTO public.usage_metrics VALUES ('user.9.requests', 3);
INSERT INTO public.usage_metrics VALUES ('usagekit.counts.dropped', 63);

INSERT INTO public.usage_writers VALUES ('81794dbf16fd1f65ccefa8ce1042bf02', 0, '\x', 1730073600000);
INSERT INTO public.usage_writers VALUES ('a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', 2, '\xe04389413bd43678ed6ac69b1a1e6a09', 1730073600000);
INSERT INTO public.usage_writers VALUES ('b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', 3, '\x571b221c87a5fe99ae3750cfe01a5371', 1730073600000);
INSERT INTO public.usage_writers VALUES ('c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', 3, '\x6f20626174636820616e79206d6f7265', 1730073600000);
INSERT INTO public.usage_writers VALUES ('d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4', 1, '\x0a219d6fa31442a37571de5b99e48964', 1730073600000);
INSERT INTO public.usage_writers VALUES ('e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', 0, '\x', 1730073600000);

ALTER TABLE ONLY public.usage_history
    ADD CONSTRAINT usage_history_pkey PRIMARY KEY (step, bucket, key);

ALTER TABLE ONLY public.usage_inbox
    ADD CONSTRAINT usage_inbox_pkey PRIMARY KEY (writer, seq);

ALTER TABLE ONLY public.usage_meta
    ADD CONSTRAINT usage_meta_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.usage_metrics
    ADD CONSTRAINT usage_metrics_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.usage_writers
    ADD CONSTRAINT usage_writers_pkey PRIMARY KEY (writer);
