/** Why the agent, or a question to its server, failed. */
export type AgentErrorCode =
  /** The server can't be reached: nothing was sent. */
  | 'SERVER_UNREACHED'
  /** It did not answer, or not in time: whether it did what was asked is not known. */
  | 'SERVER_AWAY'
  /** It answered what makes no sense. */
  | 'SERVER_GARBAGE'
  /** Our token is not this boot's. */
  | 'TOKEN_INVALID'
  /** This boot's token was given to somebody else. */
  | 'TOKEN_DENIED'
  /** Commits between ours and the server's are forgotten there: the tree has to be loaded anew. */
  | 'COMPACTED'
  | 'ADDRESS'
  /** The command line is wrong. */
  | 'USAGE'
  | 'MOUNT';

export class AgentError extends Error {
  readonly code: AgentErrorCode;

  constructor(code: AgentErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'AgentError';
    this.code = code;
  }
}
