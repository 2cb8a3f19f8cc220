/** The operations of a packet: one row for each, with what the host does about it where it knows the connection. */
import * as abi from './abi.ts';

export interface Operation {
  readonly code: number;
  readonly name: string;
  /** What comes of one from the guest, on a connection and on none; the documentation is made of it. */
  readonly onConnection: string;
  readonly onNone: string;
  /** Whether data may follow the header. */
  readonly hasData: boolean;
}

const reset = 'answered with RST';

export const operations: readonly Operation[] = [
  {
    code: abi.OP_REQUEST,
    name: 'REQUEST',
    onConnection: 'the connection is reset: nobody asks twice',
    onNone: 'RESPONSE where a service answers at the port, else RST',
    hasData: false,
  },
  {
    code: abi.OP_RESPONSE,
    name: 'RESPONSE',
    onConnection: 'the host program that asked gets its `OK`; where none had asked, the connection is reset',
    onNone: reset,
    hasData: false,
  },
  {
    code: abi.OP_RST,
    name: 'RST',
    onConnection: 'the connection is over, what the host has not taken of it is dropped',
    onNone: 'nothing',
    hasData: false,
  },
  {
    code: abi.OP_SHUTDOWN,
    name: 'SHUTDOWN',
    onConnection:
      'the host sees the end of the stream, or that the guest reads no more; both at once are answered with RST',
    onNone: reset,
    hasData: false,
  },
  {
    code: abi.OP_RW,
    name: 'RW',
    onConnection: 'the data goes to the host; beyond the credit, or after the guest shut down, the connection is reset',
    onNone: reset,
    hasData: true,
  },
  {
    code: abi.OP_CREDIT_UPDATE,
    name: 'CREDIT_UPDATE',
    onConnection: 'counts, as the credit in every packet does',
    onNone: reset,
    hasData: false,
  },
  {
    code: abi.OP_CREDIT_REQUEST,
    name: 'CREDIT_REQUEST',
    onConnection: 'answered with CREDIT_UPDATE',
    onNone: reset,
    hasData: false,
  },
];

/** By code; a gap for what is no operation. */
export const operationOf: readonly (Operation | undefined)[] = Array.from(
  { length: operations.reduce((most, { code }) => Math.max(most, code), 0) + 1 },
  (_, code) => operations.find((row) => row.code === code),
);
