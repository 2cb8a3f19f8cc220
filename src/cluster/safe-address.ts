/** Whether what managers say there is read by nobody else: over TLS, or on this machine. */
export const isSafeAddress = (url: string): boolean => {
  if (!URL.canParse(url)) return false;
  const { protocol, hostname } = new URL(url);
  return protocol === 'https:' || (protocol === 'http:' && /^(127(\.\d{1,3}){3}|\[::1\])$/.test(hostname));
};
