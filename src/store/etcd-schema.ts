/**
 * The part of etcd's v3 API that a store needs, in protobuf's JSON form: messages and fields as in
 * `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto` of github.com/etcd-io/etcd (Apache-2.0), with the numbers that
 * they have there. Fields that are left out are skipped when they are read. Numbers above 2⁵³ are never ours: revisions
 * count from 1, and leases get ids that we choose.
 */
import { fromJSON, type MethodDefinition } from '@grpc/proto-loader';

type Bytes = Uint8Array;

const fields = (list: Readonly<Record<string, readonly [type: string, id: number]>>) => ({
  fields: Object.fromEntries(Object.entries(list).map(([name, [type, id]]) => [name, { type, id }])),
});

const repeated = (type: string, id: number) => ({ rule: 'repeated', type, id });

const schema = {
  nested: {
    KeyValue: fields({
      key: ['bytes', 1],
      createRevision: ['int64', 2],
      modRevision: ['int64', 3],
      version: ['int64', 4],
      value: ['bytes', 5],
      lease: ['int64', 6],
    }),
    Event: fields({ type: ['int32', 1], kv: ['KeyValue', 2] }),
    ResponseHeader: fields({ revision: ['int64', 3] }),
    RangeRequest: fields({
      key: ['bytes', 1],
      rangeEnd: ['bytes', 2],
      limit: ['int64', 3],
      revision: ['int64', 4],
      keysOnly: ['bool', 8],
      countOnly: ['bool', 9],
      minModRevision: ['int64', 10],
    }),
    RangeResponse: {
      fields: {
        header: { type: 'ResponseHeader', id: 1 },
        kvs: repeated('KeyValue', 2),
        more: { type: 'bool', id: 3 },
        count: { type: 'int64', id: 4 },
      },
    },
    PutRequest: fields({ key: ['bytes', 1], value: ['bytes', 2], lease: ['int64', 3] }),
    PutResponse: fields({ header: ['ResponseHeader', 1] }),
    DeleteRangeRequest: fields({ key: ['bytes', 1], rangeEnd: ['bytes', 2] }),
    DeleteRangeResponse: fields({ deleted: ['int64', 2] }),
    RequestOp: {
      oneofs: { request: { oneof: ['requestRange', 'requestPut', 'requestDeleteRange', 'requestTxn'] } },
      ...fields({
        requestRange: ['RangeRequest', 1],
        requestPut: ['PutRequest', 2],
        requestDeleteRange: ['DeleteRangeRequest', 3],
        requestTxn: ['TxnRequest', 4],
      }),
    },
    ResponseOp: {
      oneofs: { response: { oneof: ['responseRange', 'responsePut', 'responseDeleteRange', 'responseTxn'] } },
      ...fields({
        responseRange: ['RangeResponse', 1],
        responsePut: ['PutResponse', 2],
        responseDeleteRange: ['DeleteRangeResponse', 3],
        responseTxn: ['TxnResponse', 4],
      }),
    },
    Compare: {
      oneofs: { targetUnion: { oneof: ['version', 'modRevision'] } },
      ...fields({
        result: ['int32', 1],
        target: ['int32', 2],
        key: ['bytes', 3],
        version: ['int64', 4],
        modRevision: ['int64', 6],
      }),
    },
    TxnRequest: {
      fields: { compare: repeated('Compare', 1), success: repeated('RequestOp', 2), failure: repeated('RequestOp', 3) },
    },
    TxnResponse: {
      fields: {
        header: { type: 'ResponseHeader', id: 1 },
        succeeded: { type: 'bool', id: 2 },
        responses: repeated('ResponseOp', 3),
      },
    },
    CompactionRequest: fields({ revision: ['int64', 1] }),
    CompactionResponse: fields({ header: ['ResponseHeader', 1] }),
    WatchCreateRequest: fields({
      key: ['bytes', 1],
      rangeEnd: ['bytes', 2],
      startRevision: ['int64', 3],
      fragment: ['bool', 8],
    }),
    WatchRequest: fields({ createRequest: ['WatchCreateRequest', 1] }),
    WatchResponse: {
      fields: {
        header: { type: 'ResponseHeader', id: 1 },
        created: { type: 'bool', id: 3 },
        canceled: { type: 'bool', id: 4 },
        compactRevision: { type: 'int64', id: 5 },
        cancelReason: { type: 'string', id: 6 },
        fragment: { type: 'bool', id: 7 },
        events: repeated('Event', 11),
      },
    },
    LeaseGrantRequest: fields({ ttl: ['int64', 1], id: ['int64', 2] }),
    LeaseGrantResponse: fields({ ttl: ['int64', 3] }),
    LeaseRevokeRequest: fields({ id: ['int64', 1] }),
    LeaseRevokeResponse: fields({ header: ['ResponseHeader', 1] }),
    LeaseKeepAliveRequest: fields({ id: ['int64', 1] }),
    LeaseKeepAliveResponse: fields({ ttl: ['int64', 3] }),
    LeaseTimeToLiveRequest: fields({ id: ['int64', 1] }),
    LeaseTimeToLiveResponse: fields({ ttl: ['int64', 3] }),
    AuthenticateRequest: fields({ name: ['string', 1], password: ['string', 2] }),
    AuthenticateResponse: fields({ token: ['string', 2] }),
    etcdserverpb: {
      nested: {
        KV: {
          methods: {
            Range: { requestType: 'RangeRequest', responseType: 'RangeResponse' },
            Txn: { requestType: 'TxnRequest', responseType: 'TxnResponse' },
            Compact: { requestType: 'CompactionRequest', responseType: 'CompactionResponse' },
          },
        },
        Watch: {
          methods: {
            Watch: {
              requestType: 'WatchRequest',
              requestStream: true,
              responseType: 'WatchResponse',
              responseStream: true,
            },
          },
        },
        Lease: {
          methods: {
            LeaseGrant: { requestType: 'LeaseGrantRequest', responseType: 'LeaseGrantResponse' },
            LeaseRevoke: { requestType: 'LeaseRevokeRequest', responseType: 'LeaseRevokeResponse' },
            LeaseKeepAlive: {
              requestType: 'LeaseKeepAliveRequest',
              requestStream: true,
              responseType: 'LeaseKeepAliveResponse',
              responseStream: true,
            },
            LeaseTimeToLive: { requestType: 'LeaseTimeToLiveRequest', responseType: 'LeaseTimeToLiveResponse' },
          },
        },
        Auth: {
          methods: { Authenticate: { requestType: 'AuthenticateRequest', responseType: 'AuthenticateResponse' } },
        },
      },
    },
  },
};

// The types of protobufjs want fields in every name space.
const services = fromJSON(schema as unknown as Parameters<typeof fromJSON>[0], {
  longs: Number,
  defaults: true,
  oneofs: true,
});

export interface KeyValue {
  readonly key: Bytes;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly version: number;
  readonly value: Bytes;
  /** 0: none. */
  readonly lease: number;
}

/** `rangeEnd` left out: the one key. `[0]`: to the last key. `revision` 0 or left out: the newest. */
export interface RangeRequest {
  readonly key: Bytes;
  readonly rangeEnd?: Bytes;
  readonly limit?: number;
  readonly revision?: number;
  readonly keysOnly?: boolean;
  readonly countOnly?: boolean;
  readonly minModRevision?: number;
}

interface Header {
  /** Of etcd, when it answered. */
  readonly header: { readonly revision: number };
}

export interface RangeResponse extends Header {
  readonly kvs: readonly KeyValue[];
  readonly more: boolean;
  readonly count: number;
}

/** CompareResult and CompareTarget of rpc.proto. */
export const compares = { equal: 0, greater: 1, version: 0, mod: 2 } as const;

export type Compare =
  | { readonly result: number; readonly target: typeof compares.version; readonly key: Bytes; readonly version: number }
  | {
      readonly result: number;
      readonly target: typeof compares.mod;
      readonly key: Bytes;
      readonly modRevision: number;
    };

export type RequestOp =
  | { readonly requestRange: RangeRequest }
  | { readonly requestPut: { readonly key: Bytes; readonly value: Bytes; readonly lease?: number } }
  | { readonly requestDeleteRange: { readonly key: Bytes; readonly rangeEnd?: Bytes } }
  | { readonly requestTxn: TxnRequest };

export interface TxnRequest {
  readonly compare: readonly Compare[];
  readonly success: readonly RequestOp[];
  readonly failure: readonly RequestOp[];
}

export interface ResponseOp {
  readonly responseRange?: RangeResponse;
  readonly responseTxn?: TxnResponse;
}

export interface TxnResponse extends Header {
  readonly succeeded: boolean;
  readonly responses: readonly ResponseOp[];
}

export interface WatchEventMessage {
  /** 0: put, 1: delete. */
  readonly type: number;
  readonly kv: KeyValue;
}

export interface WatchResponse extends Header {
  readonly created: boolean;
  readonly canceled: boolean;
  /** With `canceled`: history before it is gone. */
  readonly compactRevision: number;
  readonly cancelReason: string;
  /** More of the same revision may follow. */
  readonly fragment: boolean;
  readonly events: readonly WatchEventMessage[];
}

/** What each unary call takes and gives. */
export interface Unary {
  readonly Range: [RangeRequest, RangeResponse];
  readonly Txn: [TxnRequest, TxnResponse];
  readonly Compact: [{ readonly revision: number }, Header];
  readonly LeaseGrant: [{ readonly id: number; readonly ttl: number }, { readonly ttl: number }];
  readonly LeaseRevoke: [{ readonly id: number }, Header];
  readonly LeaseTimeToLive: [{ readonly id: number }, { readonly ttl: number }];
  readonly Authenticate: [{ readonly name: string; readonly password: string }, { readonly token: string }];
}

export interface Streams {
  readonly Watch: [
    {
      readonly createRequest: {
        readonly key: Bytes;
        readonly rangeEnd: Bytes;
        readonly startRevision: number;
        readonly fragment: boolean;
      };
    },
    WatchResponse,
  ];
  readonly LeaseKeepAlive: [{ readonly id: number }, { readonly ttl: number }];
}

const serviceOf = {
  Range: 'KV',
  Txn: 'KV',
  Compact: 'KV',
  Watch: 'Watch',
  LeaseGrant: 'Lease',
  LeaseRevoke: 'Lease',
  LeaseKeepAlive: 'Lease',
  LeaseTimeToLive: 'Lease',
  Authenticate: 'Auth',
} as const satisfies Record<keyof Unary | keyof Streams, string>;

/** Its path, and how its messages become bytes. */
export const methodOf = (name: keyof Unary | keyof Streams): MethodDefinition<object, object> => {
  const service = services[`etcdserverpb.${serviceOf[name]}`] as unknown as Record<
    string,
    MethodDefinition<object, object>
  >;
  return service[name]!;
};
