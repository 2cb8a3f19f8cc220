"""Asks for this boot's token over vsock, with a nonce and from a port of our own; prints the answer's status and body."""
import http.client
import json
import socket
import sys

nonce, port = sys.argv[1], int(sys.argv[2])
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
connection.sock.bind((socket.VMADDR_CID_ANY, port))
connection.sock.connect((socket.VMADDR_CID_HOST, 80))
body = json.dumps({"nonce": nonce})
connection.request("POST", "/porthole/v1/token", body, {"Content-Type": "application/json"})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
