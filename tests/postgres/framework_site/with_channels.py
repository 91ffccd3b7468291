"""Channels' consumers, which perform one job for each message, and a client for them."""

import os
import socket

import django
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import URLRouter
from django.conf import settings
from django.urls import path as url
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from conn_guard import closing_connections
from tests.postgres.framework_site import outcomes

django.setup()

PORT = int(os.environ["PORT"])
cure = closing_connections if settings.CURE == "line" else lambda function: function
to_thread = database_sync_to_async if settings.CURE == "own" else sync_to_async


class Sync(WebsocketConsumer):
    @cure
    def receive(self, text_data=None, bytes_data=None):
        outcomes.perform(*text_data.split())


class Async(AsyncWebsocketConsumer):
    @cure
    async def receive(self, text_data=None, bytes_data=None):
        await to_thread(outcomes.perform)(*text_data.split())


application = URLRouter([url("sync/", Sync.as_asgi()), url("async/", Async.as_asgi())])


class Client:
    """A websocket that stays open."""

    def __init__(self, target: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", PORT))
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.socket.sendall(self.protocol.send(Request(host="127.0.0.1", target=target)))
        self.protocol.receive_data(self.socket.recv(65536))
        assert isinstance(next(self.protocol.events()), AcceptConnection)

    def send(self, text: str) -> None:
        self.socket.sendall(self.protocol.send(TextMessage(data=text)))


opened: list[Client] = []


def send(name: str, path: str) -> None:
    client = Client(os.environ["TARGET"])
    opened.append(client)
    client.send(f"{name} {path}")
